"""An answer's text while it is made: whole characters, stop strings across token borders, and no more than is certain.

What is given out adds up to the text that offline generation would return for the same tokens (law 13).
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "�"
"""What a decoder writes for a character whose last bytes have not come yet."""
KEPT, LONGEST_RUN = 6, 24  # tokens of context a decoding starts with; tokens after which it starts anew


class TextStream:
    """The growing text of one answer.

    Attributes:
        stop: the stop string that was found, or None.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = (), *, strip: bool = False
    ) -> None:
        """Begin an empty answer.

        Args:
            tokenizer: of the backbone.
            stops: the answer ends before the first of these.
            strip: drop white space around the whole answer, as offline generation does for a text format.
        """
        self._tokenizer, self._stops, self._strip = tokenizer, tuple(stops), strip
        self._ids: list[int] = []
        self._from = 0  # where the present run of decoding begins
        self._run = ""  # decoded text of the run's tokens that are certain
        self._raw = ""  # all decoded text
        self._searched = 0  # of `_raw`, what no stop string can begin in any more
        self._given = 0  # of `_raw`, what has been given out (or dropped as white space)
        self.stop: str | None = None

    def push(self, token: int, armed: bool = True) -> str:
        """Return the text that has become certain with one more token; unless `armed`, no stop string ends it."""
        self._ids.append(token)
        text = self._decode(self._ids[self._from :])
        if text.endswith(UNFINISHED):
            return ""
        self._raw += text[len(self._run) :]
        self._run = text
        if len(self._ids) - self._from > LONGEST_RUN:
            self._from = len(self._ids) - KEPT
            self._run = self._decode(self._ids[self._from :])
        if not armed:
            self._searched = len(self._raw)
            return self._give(len(self._raw), at_end=False)
        return self._certain()

    def finish(self) -> str:
        """Return the rest of the text; nothing was found that would end it."""
        if self.stop is None:
            whole = self._decode(self._ids)
            if whole.startswith(self._raw):
                self._raw = whole  # with a last character that was never finished
            self._find_stop()
        return self._give(len(self._raw), at_end=True)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _certain(self) -> str:
        if self._find_stop():
            return self._give(len(self._raw), at_end=True)
        return self._give(len(self._raw) - self._pending(), at_end=False)

    def _find_stop(self) -> bool:
        """Cut the text before the first stop string in it, if there is one."""
        found = [(at, stop) for stop in self._stops if (at := self._raw.find(stop, self._searched)) >= 0]
        if not found:
            longest = max(map(len, self._stops), default=0)
            self._searched = max(self._searched, len(self._raw) - longest + 1, 0) if self._stops else 0
            return False
        at, self.stop = min(found, key=lambda pair: (pair[0], -len(pair[1])))
        self._raw = self._raw[:at]
        return True

    def _pending(self) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._raw)), longest, -1):
                if self._raw.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _give(self, end: int, at_end: bool) -> str:
        text = self._raw[self._given : end]
        if self._strip:
            lead = 0 if self._raw[: self._given].strip() else len(text) - len(text.lstrip())
            self._given, text = self._given + lead, text[lead:]
            kept = text.rstrip()
            if not at_end:
                self._given += len(kept)
                return kept
            text = kept
        self._given = max(self._given, end)
        return text
