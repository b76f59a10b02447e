"""Texts as token ids for an engine, under a lock: tokenizers of Hugging Face may not be used by two threads at once."""

import threading

from foreword.backbone import Backbone
from foreword.generate.offline import ending_ids, text_row
from foreword.serve.request import RequestError


class Words:
    """A backbone's tokenizer as the engine uses it.

    Attributes:
        ending: token ids that end an answer.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone, self._lock = backbone, threading.Lock()
        self.ending = ending_ids(backbone)

    def source(self, prompt: str | tuple[int, ...], text_format: str | None) -> tuple[tuple[int, ...], int]:
        """Return a prompt's token ids, and how many of them come after a suffix or infix.

        Raises:
            RequestError: the tokenizer gives the text an id for which the model has no embedding.
        """
        if not isinstance(prompt, str):
            return tuple(prompt), 0
        with self._lock:
            row = text_row(self._backbone, prompt, text_format)
            known = self._backbone.model.get_input_embeddings().weight.shape[0]
            if row.source and (worst := max(row.source)) >= known:  # in a step it would end its neighbours too
                token = self._backbone.tokenizer.decode([worst])
                text = f"prompt has token {token!r} with id {worst}, the model's ids are 0 to {known - 1}; leave it out"
                raise RequestError(text, "prompt")
        return row.source, row.tail
