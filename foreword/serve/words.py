"""Texts as token ids for an engine, under a lock: tokenizers of Hugging Face may not be used by two threads at once."""

import threading

from foreword.backbone import Backbone
from foreword.generate.offline import ending_ids, text_row


class Words:
    """A backbone's tokenizer as the engine uses it.

    Attributes:
        ending: token ids that end an answer.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone, self._lock = backbone, threading.Lock()
        self.ending = ending_ids(backbone)

    def source(self, prompt: str | tuple[int, ...], text_format: str | None) -> tuple[tuple[int, ...], int]:
        """Return a prompt's token ids, and how many of them come after a suffix or infix."""
        if not isinstance(prompt, str):
            return tuple(prompt), 0
        with self._lock:
            row = text_row(self._backbone, prompt, text_format)
        return row.source, row.tail
