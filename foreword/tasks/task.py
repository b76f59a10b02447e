"""What a task is: where its records come from, how its outputs are generated, and how they are scored."""

from collections.abc import Callable
from dataclasses import dataclass, field

from foreword.config import check_least
from foreword.data.records import Record, check_records
from foreword.errors import DataError, nearest
from foreword.tasks.scores import check_score_names


@dataclass(frozen=True)
class GenerationLimits:
    """How a task's outputs are decoded; lengths are in tokens.

    `bad_words` may not be generated (the papers forbid newlines); an empty output is replaced by `empty_output`
    before scoring, as Prefix-Tuning's code does with "Error".
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    bad_words: tuple[str, ...] = ("\n", "\n\n")
    empty_output: str = ""

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("min_new_tokens", 0), ("num_beams", 1)):
            check_least(f"generation.{name}", getattr(self, name), least)


@dataclass(frozen=True)
class Task:
    """A named job: records per split, metrics by name, decoding limits, licence.

    Attributes:
        name: the task's name, as in `TASKS` and `--task`.
        loader: from a split's name to its records. It reads files only when called.
        metrics: names in `foreword.evaluate.metrics.METRICS`, no two of which give a score of the same name.
        labels: the legal outputs when the task is a classification; any other output counts as wrong.
        template: the text-to-text form in words, for people.
        licence: the data's licence and what it asks for.
        max_source, max_target: suggested truncation, in tokens; None keeps everything.
    """

    name: str
    loader: Callable[[str], list[Record]]
    metrics: tuple[str, ...]
    generation: GenerationLimits = field(default_factory=GenerationLimits)
    splits: tuple[str, ...] = ("train", "dev", "test")
    labels: tuple[str, ...] = ()
    template: str = ""
    licence: str = ""
    max_source: int | None = None
    max_target: int | None = None

    def __post_init__(self) -> None:
        check_score_names(self.metrics)

    def load(self, split: str, limit: int | None = None) -> list[Record]:
        """Return the records of `split`, at most the first `limit` of them.

        Raises:
            DataError: the split does not exist, its data is missing or malformed, or a target is empty.
        """
        if split not in self.splits:
            raise DataError(f"task {self.name!r} has no split {split!r}{nearest(split, self.splits)}")
        if limit is not None and limit < 1:
            raise DataError(f"limit = {limit} leaves no record of task {self.name!r}; give a number from 1")
        records = self.loader(split)[:limit]
        check_records(records, f"task {self.name!r}, split {split!r}")
        return records
