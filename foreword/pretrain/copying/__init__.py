"""Copy-rich text: records with the sentences that state them, echoes of the corpora's own sentences, labels.

A backbone that has not learned to copy from its context cannot be steered by a prefix: the prefix can only choose
among what the model does already. Everything here is made by our own generators or from the training corpora, never
from an evaluation set, and is disclosed in the model cards.
"""
