"""What an evaluation scores: a backbone with a soft prompt, or with a baseline; loaded from a run or an artefact."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from foreword.artifact import load_prompt
from foreword.backbone import Backbone, load_backbone
from foreword.baselines.autoprompt.masked import MaskedBackbone
from foreword.baselines.autoprompt.trigger import METHOD as AUTOPROMPT
from foreword.baselines.autoprompt.trigger import Trigger, load_trigger
from foreword.baselines.methods import apply_baseline
from foreword.baselines.saved import SavedBaseline, check_belongs, is_baseline, read_baseline
from foreword.baselines.written import WrittenPrompt, written_format
from foreword.data.examples import encode_source, get_format
from foreword.data.records import add_words
from foreword.errors import ConfigError
from foreword.evaluate.triggers import masked_text_loss, trigger_outputs
from foreword.generate import generate_ids
from foreword.prompts.batch import Row
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.tasks.task import GenerationLimits
from foreword.train.loss import target_loss
from foreword.train.record import ARTIFACT, CONFIG, read_config
from foreword.train.run_config import BackboneConfig, RunConfig
from foreword.train.trigger_run import load_readable

Tell = Callable[[str, int, int], None]
"""Called as `(what, done, total)` after each batch of generated texts."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is scored.

    Attributes:
        name: for tables: `untouched`, `prefix 10`, `fine_tune`, `adapter8`.
        backbone: the model that runs: the frozen one, or the one that a baseline has changed.
        prompt: the soft prompt, None for a plain model.
        format: text format of the sources; None takes the backbone's default.
        max_source: truncation of sources in tokens, as in training.
        words: text before every source, as in training.
        written: examples before every source, which also say how an answer ends.
        trigger: written words in a template, and how labels are read off; without ids, the template alone.
    """

    name: str
    backbone: Backbone
    prompt: SoftPrompt | None = None
    format: str | None = None
    max_source: int | None = None
    words: str | None = None
    written: WrittenPrompt | None = None
    trigger: Trigger | None = None

    def outputs(
        self, sources: Sequence[str], limits: GenerationLimits, batch_size: int = 32, tell: Tell | None = None
    ) -> list[str]:
        """Return one output a source, decoded as the task wants; long and short sources do not share a batch.

        Args:
            sources: texts.
            limits: the task's decoding limits.
            batch_size: rows in one pass.
            tell: progress.
        """
        options = self._options(limits)
        if self.trigger is not None:
            told = None if tell is None else partial(tell, self.name)
            return trigger_outputs(self.backbone, self.trigger, sources, options, batch_size, told)
        rows = self._rows(sources, limits)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))
        made = [""] * len(rows)
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            prompts = [self.prompt] * len(chunk)
            found = generate_ids(self.backbone, [rows[i] for i in chunk], prompts, **options)
            for i, ids in zip(chunk, found, strict=True):
                text = self.backbone.tokenizer.decode(ids, skip_special_tokens=True)
                made[i] = text.strip() if self.written is None else self.written.answer(text)
            if tell is not None:
                tell(self.name, start + len(chunk), len(order))
        return made

    def _rows(self, sources: Sequence[str], limits: GenerationLimits) -> list[Row]:
        sources = [add_words(source, self.words) for source in sources]
        if self.written is not None:
            form = written_format(self.format, self.backbone.is_encoder_decoder)
            return self.written.rows(self.backbone, sources, form, self.max_source, limits.max_new_tokens)
        form = get_format(self.format, self.backbone.is_encoder_decoder)
        tokenizer = self.backbone.tokenizer
        return [Row(encode_source(tokenizer, text, form, self.max_source), tail=form.tail) for text in sources]

    def _options(self, limits: GenerationLimits) -> dict[str, Any]:
        if self.written is None:
            return generation_options(self.backbone, limits)
        allowed = tuple(word for word in limits.bad_words if "\n" not in word)  # a newline ends a written answer
        options = generation_options(self.backbone, dataclasses.replace(limits, bad_words=allowed))
        return options | {"eos_token_id": self.written.stop_ids(self.backbone)}


def generation_options(backbone: Backbone, limits: GenerationLimits) -> dict[str, Any]:
    """Return a task's limits as Transformers' generation options."""
    words = [backbone.tokenizer(word, add_special_tokens=False).input_ids for word in limits.bad_words]
    options: dict[str, Any] = {"max_new_tokens": limits.max_new_tokens, "num_beams": limits.num_beams}
    if limits.num_beams > 1:
        options["length_penalty"] = limits.length_penalty
    if limits.min_new_tokens:
        options["min_new_tokens"] = limits.min_new_tokens
    return options | {"bad_words_ids": [word for word in words if word] or None, "do_sample": False}


def read_run(source: object) -> RunConfig | None:
    """Return the configuration of a run directory, or None where `source` is no run directory."""
    if isinstance(source, str | Path) and (Path(source) / CONFIG).is_file():
        return read_config(source)
    return None


def load_subjects(
    source: str | Path | SoftPrompt, backbone: str | Path | Backbone | None = None
) -> tuple[Subject, Subject]:
    """Return the untouched backbone, and what a run, a saved prompt or a saved baseline makes of it.

    Args:
        source: a run directory, the directory of a baseline, that or the hub id of a prompt, or a prompt in memory.
        backbone: the untouched model; None takes the one that was trained on.

    Raises:
        ArtifactError: nothing can be loaded from `source`, or the baseline does not belong to the backbone.
        BackboneError: the backbone cannot be loaded.
        ConfigError: the backbone is not known.
        PromptError: the prompt does not belong to the backbone.
    """
    run = read_run(source)
    where = source if run is None else Path(str(source)) / ARTIFACT
    if is_baseline(where):
        return _baseline_subjects(Path(str(where)), read_baseline(where), backbone)
    prompt = _prompt(source, run)
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(backbone or _known_backbone(source, run, prompt))
    form = run.data.format if run is not None else prompt.format if prompt is not None else None
    limit = run.data.max_source if run is not None else _trained_limit(prompt)
    untouched = Subject("untouched", backbone, None, form, limit)
    prompt.check_backbone(backbone)
    return untouched, Subject(f"{prompt.spec.kind} {prompt.length}", backbone, prompt.to(backbone.device), form, limit)


def _baseline_subjects(
    where: Path, saved: SavedBaseline, backbone: str | Path | Backbone | None
) -> tuple[Subject, Subject]:
    """Return the untouched backbone and the baseline's; both read the same words, but a written prompt is its words."""
    if saved.method == AUTOPROMPT:
        return _trigger_subjects(saved, backbone or saved.backbone.source or _unknown(where))
    data = (saved.recipe or {}).get("data") or {}
    reads = {"format": data.get("format"), "max_source": data.get("max_source")}
    words, name = data.get("words"), saved.title
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(backbone or saved.backbone.source or _unknown(where))
    untouched = Subject("untouched", backbone, **reads, words=None if saved.method == "written" else words)
    if saved.method == "written":
        return untouched, Subject(name, backbone, **reads, words=words, written=apply_baseline(where, backbone))
    check_belongs(saved, backbone)
    again = where if saved.method == "fine_tune" else backbone.source  # the untouched one stays as it is
    changed = load_backbone(again, device=backbone.device)
    if saved.method != "fine_tune":
        apply_baseline(where, changed)
    return untouched, Subject(name, changed, **reads, words=words)


def _trigger_subjects(saved: SavedBaseline, backbone: str | Path | Backbone) -> tuple[Subject, Subject]:
    """Return the model with the template and its label words alone, and with the trigger words in it."""
    if not isinstance(backbone, Backbone):
        backbone = load_readable(BackboneConfig(str(backbone)))
    trigger = load_trigger(saved, backbone)
    untouched = Subject("untouched", backbone, trigger=dataclasses.replace(trigger, ids=()))
    return untouched, Subject(saved.title, backbone, trigger=trigger)


def _prompt(source: str | Path | SoftPrompt, run: RunConfig | None) -> SoftPrompt:
    if isinstance(source, SoftPrompt):
        return source
    return load_prompt(source if run is None else Path(source) / ARTIFACT)


def _known_backbone(source: object, run: RunConfig | None, prompt: SoftPrompt | None) -> str:
    named = run.backbone.source if run is not None else (prompt.meta.get("source") if prompt is not None else None)
    return named or _unknown(source)


def _trained_limit(prompt: SoftPrompt) -> int | None:
    """Return the truncation of sources that a saved prompt's recipe names."""
    data = (prompt.meta.get("recipe") or {}).get("data")
    return data.get("max_source") if isinstance(data, dict) else None


def _unknown(source: object) -> str:
    raise ConfigError(f"{str(source)!r} does not say which backbone it was learned on; give --backbone")


@torch.no_grad()
def text_loss(backbone: Backbone, texts: Sequence[str]) -> float:
    """Return the mean loss of plain texts in nats per token, with no soft prompt.

    A decoder predicts every token of a text; an encoder-decoder reads the first half and predicts the second; a masked
    model fills in every seventh token.
    """
    if isinstance(backbone, MaskedBackbone):
        return masked_text_loss(backbone, texts)
    rows = [_text_row(backbone, text) for text in texts]
    backbone.model.eval()
    found = target_loss(backbone, rows, [None] * len(rows))
    return float(found.sum) / found.num_tokens


def _text_row(backbone: Backbone, text: str) -> Row:
    tokenizer = backbone.tokenizer
    ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    if backbone.is_encoder_decoder:
        half = max(1, len(ids) // 2)
        return Row(ids[:half], (ids[half:] or ids,))
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return Row(ids[:1], (ids[1:],)) if start is None else Row((start,), (ids,))


def unrelated_texts() -> list[str]:
    """Return the bundled texts of the forgetting check: sentences of our own about many things, one a line."""
    text = resources.files("foreword").joinpath("assets/texts/unrelated.txt").read_text(encoding="utf-8")
    return text.splitlines()
