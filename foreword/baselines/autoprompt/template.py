"""Templates: a text with the source, trigger slots and a place for the answer, and what a source looks like in it."""

import dataclasses
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from foreword.data.examples import TextFormat, encode_source
from foreword.errors import ConfigError

SLOT, ANSWER = -1, -2
"""Stand for a trigger word's id and for the mask token's until they are put there."""

MARKS = {"[T]": SLOT, "[P]": ANSWER}
DEFAULTS = {"masked": "{source} [T] [T] [T] [P] .", "decoder": "{source} [T] [T] [T]"}

Kind = Literal["masked", "decoder", "encoder_decoder"]


@dataclass(frozen=True)
class Template:
    """A text with marks: `{source}`, `[T]` for a trigger word, `[P]` for the answer.

    White space before a mark is dropped, because trigger words bring their own; all other text is taken as it is.
    Models that are not masked answer at the end, where `[P]` may stand to say so.
    """

    text: str
    kind: Kind

    def __post_init__(self) -> None:
        name = f"autoprompt.template = {self.text!r}"
        marks = self._parts[1::2]
        if "[T]" not in marks:
            raise ConfigError(f"{name} has no trigger word; put one [T] for each")
        if self.text.count("{source}") != 1:
            raise ConfigError(f"{name} must have one {{source}}, where the input goes")
        if self.kind == "masked" and marks.count("[P]") != 1:
            raise ConfigError(f"{name} must have one [P], where a masked model answers")
        if self.kind != "masked" and "[P]" in self.text.strip().removesuffix("[P]"):
            raise ConfigError(f"{name}: this kind of model answers at the end, so [P] can only be last; move it")

    @classmethod
    def of(cls, text: str | None, kind: Kind) -> "Template":
        """Return the template, or the default of the kind of model (the paper's form for SST-2)."""
        return cls(DEFAULTS["masked" if kind == "masked" else "decoder"] if text is None else text, kind)

    @property
    def _parts(self) -> list[str]:
        """Text (even places) and marks (odd places), in order."""
        text = self.text.strip().removesuffix("[P]").rstrip() if self.kind != "masked" else self.text
        return re.split(r"(\[T\]|\[P\])", text)

    @property
    def slots(self) -> int:
        """How many trigger words it has."""
        return self._parts[1::2].count("[T]")

    def fill(self, source: str) -> tuple[list[str], list[int]]:
        """Return n + 1 texts, the source filled in, and the n marks (SLOT or ANSWER) that stand between them."""
        parts = self._parts
        texts = [part.replace("{source}", source) for part in parts[::2]]
        return [text.rstrip(" ") for text in texts[:-1]] + texts[-1:], [MARKS[mark] for mark in parts[1::2]]


@dataclass(frozen=True)
class Writer:
    """Puts sources into a template as token ids.

    Attributes:
        tokenizer: any Hugging Face tokenizer.
        template: what is written.
        form: text format around it; None for masked models, which get their tokenizer's own frame ([CLS], [SEP]).
        max_source: tokens that a source is cut to; None keeps all.
    """

    tokenizer: Any
    template: Template
    form: TextFormat | None = None
    max_source: int | None = None

    def write(self, source: str) -> tuple[int, ...]:
        """Return the ids that a source is read as, SLOT and ANSWER at the marks."""
        texts, marks = self.template.fill(self._cut(source))
        if self.form is not None:
            texts[0] = (self.form.before_source + texts[0]).rstrip(" ")
            texts[-1] += self.form.after_source
        lead, tail = self._frame
        ids = [*lead, *self._ids(texts[0])]
        for mark, text in zip(marks, texts[1:], strict=True):
            ids += [mark, *self._ids(text)]
        return (*ids, *tail)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []

    def _cut(self, text: str) -> str:
        """Return the text's first `max_source` tokens."""
        if self.max_source is None:
            return text
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in found["offset_mapping"]]
        return text if len(ends) <= self.max_source else text[: ends[self.max_source - 1]]

    @cached_property
    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the ids before and after all text: BOS or [CLS], a separator or [SEP]."""
        if self.form is not None:
            bare = dataclasses.replace(self.form, before_source="", after_source="")
            ids = encode_source(self.tokenizer, "", bare)
            cut = len(ids) - self.form.tail
            return ids[:cut], ids[cut:]
        inner, whole = self._ids("a"), self.tokenizer("a")["input_ids"]
        start = next((i for i in range(len(whole)) if whole[i : i + len(inner)] == inner), 0)
        return tuple(whole[:start]), tuple(whole[start + len(inner) :])
