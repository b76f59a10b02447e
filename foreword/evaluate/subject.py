"""What an evaluation scores: a backbone with a soft prompt, or a fine-tuned model; loaded from a run or an artefact."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from foreword.artifact import load_prompt
from foreword.backbone import Backbone, load_backbone
from foreword.data.examples import encode_source, get_format
from foreword.errors import ConfigError
from foreword.generate import generate_ids
from foreword.prompts.batch import Row
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.tasks.task import GenerationLimits
from foreword.train.loss import target_loss
from foreword.train.record import ARTIFACT, CONFIG, read_config
from foreword.train.run_config import RunConfig

Tell = Callable[[str, int, int], None]
"""Called as `(what, done, total)` after each batch of generated texts."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is scored.

    Attributes:
        name: for tables: `untouched`, `prefix 10`, `fine_tune`.
        backbone: the model that runs: the frozen one, or the fine-tuned one.
        prompt: the soft prompt, None for a plain model.
        format: text format of the sources; None takes the backbone's default.
        max_source: truncation of sources in tokens, as in training.
    """

    name: str
    backbone: Backbone
    prompt: SoftPrompt | None = None
    format: str | None = None
    max_source: int | None = None

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
        rows = self._rows(sources)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))
        made = [""] * len(rows)
        for start in range(0, len(order), batch_size):
            chunk = order[start : start + batch_size]
            prompts = [self.prompt] * len(chunk)
            found = generate_ids(self.backbone, [rows[i] for i in chunk], prompts, **self._options(limits))
            for i, ids in zip(chunk, found, strict=True):
                made[i] = self.backbone.tokenizer.decode(ids, skip_special_tokens=True).strip()
            if tell is not None:
                tell(self.name, start + len(chunk), len(order))
        return made

    def _rows(self, sources: Sequence[str]) -> list[Row]:
        form = get_format(self.format, self.backbone.is_encoder_decoder)
        tokenizer = self.backbone.tokenizer
        return [Row(encode_source(tokenizer, text, form, self.max_source), tail=form.tail) for text in sources]

    def _options(self, limits: GenerationLimits) -> dict[str, Any]:
        """Return the limits as Transformers' generation options."""
        words = [self.backbone.tokenizer(word, add_special_tokens=False).input_ids for word in limits.bad_words]
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
    """Return the untouched backbone, and what a run or a saved prompt makes of it, both ready to generate.

    Args:
        source: a run directory, the directory or hub id of a prompt, or a prompt in memory.
        backbone: the untouched model; None takes the one that was trained on.

    Raises:
        ArtifactError: nothing can be loaded from `source`.
        BackboneError: the backbone cannot be loaded.
        ConfigError: the backbone is not known.
        PromptError: the prompt does not belong to the backbone.
    """
    run = read_run(source)
    tuned = run is not None and run.method == "fine_tune"
    prompt = None if tuned else _prompt(source, run)
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(backbone or _known_backbone(source, run, prompt))
    form = run.data.format if run is not None else prompt.format if prompt is not None else None
    limit = run.data.max_source if run is not None else None
    untouched = Subject("untouched", backbone, None, form, limit)
    if prompt is None:
        return untouched, Subject("fine_tune", load_backbone(Path(str(source)) / ARTIFACT), None, form, limit)
    prompt.check_backbone(backbone)
    return untouched, Subject(f"{prompt.spec.kind} {prompt.length}", backbone, prompt.to(backbone.device), form, limit)


def _prompt(source: str | Path | SoftPrompt, run: RunConfig | None) -> SoftPrompt:
    if isinstance(source, SoftPrompt):
        return source
    return load_prompt(source if run is None else Path(source) / ARTIFACT)


def _known_backbone(source: object, run: RunConfig | None, prompt: SoftPrompt | None) -> str:
    named = run.backbone.source if run is not None else (prompt.meta.get("source") if prompt is not None else None)
    if not named:
        raise ConfigError(f"{str(source)!r} does not say which backbone it was learned on; give --backbone")
    return named


@torch.no_grad()
def text_loss(backbone: Backbone, texts: Sequence[str]) -> float:
    """Return the mean loss of plain texts in nats per token, with no soft prompt.

    A decoder predicts every token of a text; an encoder-decoder reads the first half and predicts the second.
    """
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
