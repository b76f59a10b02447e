"""One inspection, readable top to bottom: everything that is told about a prompt, from a run or a saved prompt."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foreword.backbone import Backbone
from foreword.data.examples import encode_source, encode_target, get_format
from foreword.data.files import write_atomic
from foreword.data.records import Record
from foreword.errors import ConfigError, PromptError
from foreword.evaluate.runner import sample
from foreword.evaluate.subject import Subject, load_subjects, read_run, unrelated_texts
from foreword.inspect.attention import AttentionMap, attention_map
from foreword.inspect.importance import Importance, Norms, leave_one_out, token_norms
from foreword.inspect.nearest import Nearest, Persistence, nearest_tokens, persistence
from foreword.prompts.batch import Row
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.tasks import get_task
from foreword.tasks.task import Task

TEXTS = 24


@dataclass(frozen=True, eq=False)
class Inspection:
    """What is told about one prompt; a part that makes no sense for it is None or empty, and `missing` says why.

    Attributes:
        name: what was inspected.
        prompt: the prompt.
        backbone: its model.
        texts: what the texts were: a task's split, or the bundled ones.
        count: how many texts.
        nearest: nearest tokens with the random control.
        persistence: what is left of the initial words.
        attention: attention paid to each virtual token.
        importance: the loss without each virtual token.
        norms: sizes beside real tokens'.
        missing: part to reason.
    """

    name: str
    prompt: SoftPrompt
    backbone: Backbone
    texts: str
    count: int
    nearest: Nearest | None
    persistence: tuple[Persistence, ...]
    attention: AttentionMap | None
    importance: Importance | None
    norms: Norms
    missing: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""

        def by_site(found: dict[tuple[str, int], tuple[float, ...]]) -> dict[str, list[float]]:
            return {f"{stack}.{layer}": list(values) for (stack, layer), values in found.items()}

        norms = {"embedding": list(self.norms.embedding)}
        norms |= {"keys": by_site(self.norms.keys), "values": by_site(self.norms.values)}
        return {
            "name": self.name,
            "backbone": self.backbone.source,
            "kind": self.prompt.spec.kind,
            "length": self.prompt.length,
            "texts": self.texts,
            "count": self.count,
            "nearest": None if self.nearest is None else dataclasses.asdict(self.nearest),
            "persistence": [dataclasses.asdict(one) for one in self.persistence],
            "attention": None if self.attention is None else self.attention.to_dict(),
            "importance": None if self.importance is None else dataclasses.asdict(self.importance),
            "norms": norms,
            "missing": self.missing,
        }

    def write(self, path: str | Path) -> Path:
        """Write everything as one JSON file and return its path."""
        write_atomic(Path(path), json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n")
        return Path(path)

    def lines(self) -> list[str]:
        """Return the findings for a terminal, one line a virtual token."""
        head = f"{self.name}: {self.prompt.spec.kind} of {self.prompt.length} on {self.backbone.source}, {self.texts}"
        made = [head]
        if self.importance is not None:
            made.append(f"loss {self.importance.whole:.4f} nats a token, {self.importance.bare:.4f} without the prompt")
        if self.nearest is not None:
            low, high = self.nearest.control
            made.append(
                f"nearest tokens by {self.nearest.of}; a random vector's nearest has cosine {low:.2f}, "
                f"and {high:.2f} in one of twenty"
            )
        made += [self._line(position) for position in range(self.prompt.length)]
        made += [
            f"initial word {one.word!r} at {one.position}: cosine {one.cosine:.2f}, rank {one.rank}, "
            f"best at {one.best_position} with rank {one.best_rank}" for one in self.persistence
        ]
        return made + [f"left out: {part}: {why}" for part, why in self.missing.items()]

    def _line(self, position: int) -> str:
        parts = [f"{position:>3}"]
        if self.importance is not None:
            parts.append(f"without it {self.importance.rises[position]:+.4f}")
        if self.attention is not None and self.attention.weights:
            mean = sum(float(w[:, position].mean()) for w in self.attention.weights.values())
            parts.append(f"attention {mean / len(self.attention.weights):.4f}")
        if self.nearest is not None:
            token = self.nearest.tokens[position]
            names = ", ".join(f"{name!r} {cosine:.2f}" for name, cosine in token.cosine[:3])
            parts.append(f"{names} (p {token.cosine_p:.2f})")
        return "  ".join(parts)


def inspect_prompt(
    source: str | Path | SoftPrompt,
    task: str | Task | None = None,
    *,
    backbone: str | Path | Backbone | None = None,
    split: str = "dev",
    limit: int = TEXTS,
    words: Sequence[str] | None = None,
    seed: int = 0,
) -> Inspection:
    """Return what is inside a prompt and what it does to texts; nothing is changed.

    Args:
        source: a run directory, a saved prompt or a prompt in memory.
        task: whose texts the prompt is watched on; None takes the run's, or the bundled texts where there is no run.
        backbone: None takes the one it was learned on.
        split: of the task.
        limit: texts, drawn by `seed`.
        words: what its virtual tokens started from; None takes what its initialisation says.
        seed: of the texts, the random control and the norms' real tokens.

    Raises:
        ConfigError: what was given is no soft prompt.
        PromptError: more words than virtual tokens, or a word without a token.
    """
    subject = load_subjects(source, backbone)[1]
    if subject.prompt is None:
        raise ConfigError(f"{str(source)!r} is a {subject.name}; only soft prompts are inspected")
    prompt, model = subject.prompt.eval(), subject.backbone
    rows, texts = _rows(subject, source, task, split, limit, seed)
    missing: dict[str, str] = {}

    def attempt(part: str, make: Any) -> Any:
        try:
            return make()
        except PromptError as error:
            missing[part] = str(error)
            return None

    def drawn() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    nearest = attempt("nearest tokens", lambda: nearest_tokens(prompt, model, generator=drawn()))
    left = () if nearest is None else persistence(prompt, model, words)
    return Inspection(
        name=str(source) if isinstance(source, str | Path) else subject.name, prompt=prompt, backbone=model,
        texts=texts, count=len(rows), nearest=nearest, persistence=left,
        attention=attempt("attention", lambda: attention_map(prompt, model, rows)),
        importance=attempt("leaving one out", lambda: leave_one_out(prompt, model, rows)),
        norms=token_norms(prompt, model, drawn()), missing=missing,
    )  # fmt: skip


def _rows(
    subject: Subject, source: object, task: str | Task | None, split: str, limit: int, seed: int
) -> tuple[list[Row], str]:
    """Return token rows with one target each, and what they are."""
    run = read_run(source)
    if task is None and run is not None:
        task = run.task
    if task is None:
        records = sample([_halved(text) for text in unrelated_texts()], limit, seed)
        texts = f"{len(records)} bundled texts, cut in halves"
    else:
        task = task if isinstance(task, Task) else get_task(task)
        records = sample(task.load(split), limit, seed)
        texts = f"{len(records)} records of {task.name}, {split}"
    form = get_format(subject.format, subject.backbone.is_encoder_decoder)
    tokenizer = subject.backbone.tokenizer
    return [
        Row(
            encode_source(tokenizer, record.source, form, subject.max_source),
            (encode_target(tokenizer, record.targets[0], form),),
            form.tail,
        )
        for record in records
    ], texts


def _halved(text: str) -> Record:
    words = text.split(" ")
    return Record(" ".join(words[: len(words) // 2]), (" ".join(words[len(words) // 2 :]),))


__all__ = ["Inspection", "inspect_prompt"]
