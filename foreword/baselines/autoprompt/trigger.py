"""What a search finds: trigger words in their template, with the label words. Written words, kept as ids and text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword.artifact.directory import MANIFEST, write_directory
from foreword.backbone import Backbone
from foreword.baselines.autoprompt.reader import TriggerExample, fill, kind_of
from foreword.baselines.autoprompt.template import Template, Writer
from foreword.baselines.saved import SavedBaseline, check_belongs, describe
from foreword.config import build
from foreword.data.examples import get_format
from foreword.errors import ArtifactError, ConfigError

METHOD = "autoprompt"


@dataclass(frozen=True)
class Trigger:
    """Trigger words and how a source is read with them.

    Attributes:
        template: the text with its marks.
        ids: of the trigger words, one for each `[T]`.
        labels: label to the ids of its words; empty where the model writes its answer out.
        format: name of the text format; None for masked models.
        max_source: tokens that a source is cut to.
    """

    template: str
    ids: tuple[int, ...]
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    format: str | None = None
    max_source: int | None = None

    def writer(self, backbone: Backbone) -> Writer:
        """Return what puts sources into the template for this backbone."""
        return make_writer(backbone, self.template, self.format, self.max_source)

    def examples(self, backbone: Backbone, sources: Sequence[str]) -> list[TriggerExample]:
        """Return the sources as rows to be read, their slots open; nothing is wanted of them."""
        write = self.writer(backbone).write
        return [TriggerExample(write(source), (0,)) for source in sources]

    def rows(self, backbone: Backbone, sources: Sequence[str]) -> list[tuple[int, ...]]:
        """Return each source's token ids with the trigger words in place, ready for `generate_ids`."""
        mask_id = backbone.tokenizer.mask_token_id
        return [fill(example, self.ids, mask_id) for example in self.examples(backbone, sources)]

    def text(self, tokenizer: Any) -> str:
        """Return the template with the trigger words in it: what a person would write."""
        pieces = re.split(r" *\[T\]", self.template)
        words = [tokenizer.decode([index]) for index in self.ids]
        return pieces[0] + "".join(word + piece for word, piece in zip(words, pieces[1:], strict=True))

    def content(self, backbone: Backbone) -> dict[str, Any]:
        """Return what is stored: the fields, and the words beside their ids for people to read."""
        tokenizer = backbone.tokenizer
        (row,) = self.rows(backbone, ["a"])
        again = tokenizer(tokenizer.decode(row), add_special_tokens=False)["input_ids"]
        return {
            "template": self.template,
            "ids": self.ids,
            "labels": self.labels,
            "format": self.format,
            "max_source": self.max_source,
            "words": [tokenizer.decode([index]) for index in self.ids],
            "label_words": {label: [tokenizer.decode([i]) for i in ids] for label, ids in self.labels.items()},
            "text": self.text(tokenizer),
            "text_gives_same_ids": tuple(again) == row,
        }

    def save(self, directory: Path, backbone: Backbone, spec: Any, **facts: Any) -> Path:
        """Write the trigger as an artefact, in one atomic step, and return its directory.

        Args:
            directory: to be made.
            backbone: what it was found on.
            spec: of the search.
            facts: recipe, scores, data_digest.
        """
        saved = describe(backbone, METHOD, spec, content=self.content(backbone), **facts)
        return write_directory(directory, {MANIFEST: saved.to_json().encode()})


def kept_text(saved: SavedBaseline) -> str:
    """Return all that must be kept of a saved trigger: its text and its labels' words."""
    words = [word for found in (saved.content.get("label_words") or {}).values() for word in found]
    return "".join([saved.content["text"], *words])


def load_trigger(saved: SavedBaseline, backbone: Backbone) -> Trigger:
    """Return a saved trigger.

    Raises:
        ArtifactError: it is damaged, or was found on another backbone.
    """
    check_belongs(saved, backbone)
    names = ("template", "ids", "labels", "format", "max_source")
    try:
        trigger = build(Trigger, {name: saved.content[name] for name in names if name in saved.content})
        slots = Template.of(trigger.template, kind_of(backbone)).slots
    except ConfigError as error:
        raise ArtifactError(f"{MANIFEST}: {error}") from None
    size = backbone.model.get_input_embeddings().weight.shape[0]
    ids = [*trigger.ids, *(index for words in trigger.labels.values() for index in words)]
    if len(trigger.ids) != slots or not all(0 <= index < size for index in ids):
        raise ArtifactError(f"{MANIFEST}: content.ids = {list(trigger.ids)} do not fit the template and the backbone")
    return trigger


def make_writer(backbone: Backbone, template: str | None, form: str | None, max_source: int | None) -> Writer:
    """Return what puts sources into a template; a decoder without a named format goes on the template's sentence.

    Raises:
        ConfigError: the template or the format does not fit the kind of model.
    """
    kind = kind_of(backbone)
    if kind == "masked" and form is not None:
        raise ConfigError(f"data.format = {form!r} is not for masked models, which have their own frame; leave it out")
    form = form or ("bare" if kind == "decoder" else None)
    text_format = None if kind == "masked" else get_format(form, backbone.is_encoder_decoder)
    return Writer(backbone.tokenizer, Template.of(template, kind), text_format, max_source)


def named(labels: Mapping[str, Sequence[int]], tokenizer: Any) -> str:
    """Return the labels with their words, for a line of the log."""
    words = {label: [tokenizer.decode([index]).strip() for index in ids] for label, ids in labels.items()}
    return "; ".join(f"{label}: {' '.join(mine)}" for label, mine in words.items())
