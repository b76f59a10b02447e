"""Written prompts: examples in plain words before the text, none or a few; nothing is trained.

The words of `data.words` stand before every source, in the examples and in the question alike, for every method that
has them: what a written prompt says is what fine-tuning reads (Li & Liang's comparison, RECIPES 1.4).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from foreword.artifact.directory import MANIFEST, write_directory
from foreword.backbone import Backbone
from foreword.baselines.saved import SavedBaseline, check_belongs, describe
from foreword.data.examples import TextFormat, encode_source, get_format
from foreword.data.records import Record
from foreword.errors import ArtifactError, ConfigError
from foreword.prompts.batch import Row

BETWEEN = "\n\n"
"""Between one example and the next; a newline stands between a source and its target."""


@dataclass(frozen=True)
class WrittenSpec:
    """How many examples a written prompt shows.

    Attributes:
        shots: examples from the training records, drawn and ordered by the run's seed; 0 shows none.
        balanced: where the task has labels, draw equally many examples of each.
    """

    shots: int = 0
    balanced: bool = True

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise ConfigError(f"written.shots = {self.shots!r} must not be negative; 0 shows no example")

    @property
    def title(self) -> str:
        """A short name."""
        return f"written{self.shots}"


@dataclass(frozen=True)
class WrittenPrompt:
    """Examples `(source, target)` in the order in which they stand before the text."""

    examples: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """What stands before every source, in words."""
        return "".join(f"{source}\n{target}{BETWEEN}" for source, target in self.examples)

    def rows(
        self, backbone: Backbone, sources: Sequence[str], form: TextFormat, max_source: int | None, new_len: int
    ) -> list[Row]:
        """Return each source behind the examples; where all do not fit the window, the first ones are left out.

        Args:
            backbone: whose tokenizer and window count.
            sources: the questions, words included.
            form: `plain` or `seq2seq`.
            max_source: truncation of a question in tokens, examples not counted.
            new_len: tokens that are to be generated, which need room in a decoder's window.
        """
        tokenise = backbone.tokenizer
        shown = [
            tuple(tokenise(f"{source}\n{target}{BETWEEN}", add_special_tokens=False).input_ids)
            for source, target in self.examples
        ]
        window = backbone.geometry.max_positions
        room = None if window is None else window - (0 if backbone.is_encoder_decoder else new_len)
        questions = [encode_source(tokenise, source, form, max_source) for source in sources]
        return [_row(shown, ids, form, tokenise.bos_token_id, room) for ids in questions]

    def stop_ids(self, backbone: Backbone) -> list[int]:
        """Return the tokens that end an answer: end of sequence, and all that hold a newline.

        The untouched model has never learned to end an answer otherwise; the examples end theirs by a newline.
        """
        ends = backbone.model.generation_config.eos_token_id
        ends = backbone.tokenizer.eos_token_id if ends is None else ends
        tokens = backbone.tokenizer.batch_decode([[token] for token in range(len(backbone.tokenizer))])
        lines = [token for token, text in enumerate(tokens) if "\n" in text]
        return list(dict.fromkeys([*(ends if isinstance(ends, list) else [ends]), *lines]))

    def answer(self, text: str) -> str:
        """Return the answer in a generated text: its first line."""
        return text.strip(" ").partition("\n")[0].strip()


def _row(
    shown: Sequence[tuple[int, ...]], question: tuple[int, ...], form: TextFormat, bos: int | None, room: int | None
) -> Row:
    lead = 1 if form.lead and question[:1] == (bos,) else 0
    kept: list[int] = []
    for ids in reversed(shown):  # the nearest example stays longest
        if room is not None and len(question) + len(kept) + len(ids) > room:
            break
        kept = [*ids, *kept]
    return Row((*question[:lead], *kept, *question[lead:]), tail=form.tail)


def choose_examples(
    records: Sequence[Record], spec: WrittenSpec, seed: int, labels: Sequence[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Return `spec.shots` pairs of source and target with different sources, drawn and ordered by `seed`.

    Args:
        records: training records, words included.
        spec: how many, and whether labels are to be balanced.
        seed: of the draw and the order.
        labels: the task's; examples of each in turn where `spec.balanced`.

    Raises:
        ConfigError: there are not that many different sources.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn: dict[str, str] = {}
    for index in rng.permutation(len(records)) if spec.shots else ():
        record = records[index]
        if record.source not in drawn:
            drawn[record.source] = record.targets[rng.integers(len(record.targets))]
    pairs = _in_turn(list(drawn.items()), labels) if labels and spec.balanced else list(drawn.items())
    if len(pairs) < spec.shots:
        raise ConfigError(f"written.shots = {spec.shots} but there are {len(pairs)} different sources; give fewer")
    chosen = pairs[: spec.shots]
    return tuple(chosen[index] for index in rng.permutation(len(chosen)))


def _in_turn(pairs: Sequence[tuple[str, str]], labels: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs so that the labels take turns; a label that runs out drops out."""
    queues = [[pair for pair in pairs if pair[1] == label] for label in labels]
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def written_format(name: str | None, is_encoder_decoder: bool) -> TextFormat:
    """Return the text format of a written prompt: `plain`, or `seq2seq` on an encoder-decoder.

    Raises:
        ConfigError: `name` asks for another, whose separators an untouched model does not know.
    """
    wanted = "seq2seq" if is_encoder_decoder else "plain"
    if name not in (None, wanted):
        raise ConfigError(f"data.format = {name!r} does not go with method 'written'; leave it out for {wanted!r}")
    return get_format(wanted, is_encoder_decoder)


class Written:
    """A learner with nothing to learn: its run takes no step and stores the examples that it drew."""

    is_prompt = False
    prompt = None

    def __init__(
        self, spec: WrittenSpec, backbone: Backbone, seed: int, records: Sequence[Record], labels: Sequence[str] = ()
    ) -> None:
        """Draw the examples.

        Raises:
            ConfigError: fewer different sources than `spec.shots`.
        """
        self.spec, self.backbone = spec, backbone
        self.written = WrittenPrompt(choose_examples(records, spec, seed, labels))

    def parameters(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def prompts(self, count: int) -> Sequence[None]:
        """Return no prompt for each of `count` rows."""
        return [None] * count

    def training(self, on: bool) -> None:
        """Do nothing: there is no dropout."""

    def random_state(self) -> dict[str, Tensor]:
        """Return nothing: no random number is drawn after the examples."""
        return {}

    def load_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""

    def save(self, directory: Path, **facts: Any) -> Path:
        """Write the examples as text and return the directory."""
        content = {"examples": self.written.examples}
        saved = describe(self.backbone, "written", self.spec, content=content, **facts)
        return write_directory(directory, {MANIFEST: saved.to_json().encode()})


def load_written(saved: SavedBaseline, backbone: Backbone) -> WrittenPrompt:
    """Return a saved written prompt.

    Raises:
        ArtifactError: its examples are not pairs of texts, or it was drawn for another backbone.
    """
    check_belongs(saved, backbone)
    examples = saved.content.get("examples")
    whole = isinstance(examples, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in examples
    )
    if not whole:
        raise ArtifactError(f"{MANIFEST}: content.examples is no list of pairs of texts; make it again")
    return WrittenPrompt(tuple((source, target) for source, target in examples))


def kept_text(saved: SavedBaseline) -> str:
    """Return all that must be kept of a saved written prompt: its examples' words."""
    return "".join(text for pair in saved.content["examples"] for text in pair)
