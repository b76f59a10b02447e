"""Records as token ids: the text format, truncation, and the end-of-sequence that every row learns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foreword.data.records import Record, check_records, split_targets
from foreword.errors import ConfigError, DataError, nearest


@dataclass(frozen=True)
class TextFormat:
    """How a source and a target become one row of tokens.

    Attributes:
        name: the format's name in `FORMATS`.
        before_source, after_source, before_target, after_target: literal text, tokenised with its neighbour.
        separator: what ends the source: the tokenizer's `bos` or `eos` token, or `none`.
        lead: start the source with the tokens that the tokenizer itself would put first (Llama's and BART's BOS); an
            encoder-decoder's target too, as its decoder was pretrained and as `forced_bos_token_id` generates.
    """

    name: str
    before_source: str = ""
    after_source: str = ""
    before_target: str = ""
    after_target: str = ""
    separator: Literal["bos", "eos", "none"] = "none"
    lead: bool = False

    @property
    def tail(self) -> int:
        """How many tokens end the source after its text: the separator. An infix or suffix goes before them."""
        return 0 if self.separator == "none" else 1


# "paper": `" " + src + " " + BOS + " " + tgt + " " + EOS`, Prefix-Tuning's GPT-2 form (RECIPES 1.3).
# "plain": a newline between source and target. "seq2seq": encoder source + EOS, decoder target + EOS.
# "bare": nothing between source and target but a space, so that the target goes on the source's sentence (a cloze).
FORMATS: dict[str, TextFormat] = {
    "paper": TextFormat("paper", " ", " ", " ", " ", "bos"),
    "plain": TextFormat("plain", after_source="\n", lead=True),
    "bare": TextFormat("bare", before_target=" ", lead=True),
    "seq2seq": TextFormat("seq2seq", separator="eos", lead=True),
}


@dataclass(frozen=True)
class Example:
    """One training row: all tokens before the target, and the target, whose last token is EOS.

    The loss is on exactly `target_ids`. For an encoder-decoder, `source_ids` go to the encoder. `record_id` is the
    record's id, with `#k` if it has several targets.
    """

    source_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    record_id: str = ""

    def __len__(self) -> int:
        return len(self.source_ids) + len(self.target_ids)


@dataclass(frozen=True)
class Tokenised:
    """The examples of a split, and how many distinct sources and targets were cut to the limits."""

    examples: list[Example]
    sources_cut: int = 0
    targets_cut: int = 0

    def summary(self) -> str:
        """Return a line for the log: rows and truncation counts."""
        rows = len(self.examples)
        return f"{rows:,} rows, {self.sources_cut:,} sources and {self.targets_cut:,} targets truncated"


def get_format(name: str | None, is_encoder_decoder: bool = False) -> TextFormat:
    """Return the named format; None gives the default, "paper" for decoders and "seq2seq" for encoder-decoders.

    Raises:
        ConfigError: unknown name, or a format of the other kind of model.
    """
    name = name or ("seq2seq" if is_encoder_decoder else "paper")
    if name not in FORMATS:
        raise ConfigError(f"text format {name!r} is unknown{nearest(name, FORMATS)}")
    if (name == "seq2seq") != is_encoder_decoder:
        kind = "an encoder-decoder" if is_encoder_decoder else "a decoder-only model"
        raise ConfigError(f"text format {name!r} does not fit {kind}; leave it out for the default")
    return FORMATS[name]


def encode_source(tokenizer: Any, text: str, form: TextFormat, max_source: int | None = None) -> tuple[int, ...]:
    """Return the tokens before the target, separator included: also what generation starts from.

    Args:
        tokenizer: any Hugging Face tokenizer.
        max_source: at most this many tokens of source text; its end is cut, lead and separator always stay.
    """
    return _sources(tokenizer, [text], form, max_source)[0][0]


def encode_target(tokenizer: Any, text: str, form: TextFormat, max_target: int | None = None) -> tuple[int, ...]:
    """Return the target's tokens and EOS, at most `max_target` after a lead; EOS survives the cut.

    Raises:
        DataError: the target is empty or white space.
    """
    return _targets(tokenizer, [Record("", (text,))], form, max_target)[0][0]


def tokenise(
    records: Iterable[Record],
    tokenizer: Any,
    form: TextFormat,
    max_source: int | None = None,
    max_target: int | None = None,
) -> Tokenised:
    """Return one example per target of every record, in order, and the truncation counts.

    Raises:
        DataError: an empty target (names its record), or no record at all.
        ConfigError: a limit below what a row needs, or a tokenizer without the tokens that the format asks for.
    """
    _check_limits(max_source, max_target)
    records = list(records)
    rows = split_targets(records)
    if not rows:
        raise DataError("no example to learn from: the records are empty or have no targets")
    texts = list(dict.fromkeys(record.source for record in records))  # a shared source is tokenised once
    sources, sources_cut = _sources(tokenizer, texts, form, max_source)
    targets, targets_cut = _targets(tokenizer, rows, form, max_target)
    source_of = dict(zip(texts, sources, strict=True))
    examples = [Example(source_of[row.source], ids, row.id) for row, ids in zip(rows, targets, strict=True)]
    return Tokenised(examples, sources_cut, targets_cut)


def _sources(
    tokenizer: Any, texts: Sequence[str], form: TextFormat, limit: int | None
) -> tuple[list[tuple[int, ...]], int]:
    """Return each text's source tokens, and how many were cut."""
    rows = _ids(tokenizer, [form.before_source + text + form.after_source for text in texts])
    lead = _lead(tokenizer, form)
    tail = () if form.separator == "none" else (_special(tokenizer, form.separator),)
    return [(*lead, *ids[:limit], *tail) for ids in rows], _longer(rows, limit)


def _targets(
    tokenizer: Any, records: Sequence[Record], form: TextFormat, limit: int | None
) -> tuple[list[tuple[int, ...]], int]:
    """Return the target tokens and EOS of each one-target record, and how many were cut."""
    check_records(records, "training data")
    rows = _ids(tokenizer, [form.before_target + record.targets[0] + form.after_target for record in records])
    for record, ids in zip(records, rows, strict=True):
        if not ids:
            raise DataError(f"record {record.id!r}: target {record.targets[0]!r:.60} has no token in this tokenizer")
    eos = _special(tokenizer, "eos")
    lead = _lead(tokenizer, form) if form.name == "seq2seq" else ()
    keep = None if limit is None else limit - 1
    return [(*lead, *ids[:keep], eos) for ids in rows], _longer(rows, keep)


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _longer(rows: list[list[int]], limit: int | None) -> int:
    return 0 if limit is None else sum(len(ids) > limit for ids in rows)


def _lead(tokenizer: Any, form: TextFormat) -> Sequence[int]:
    if not form.lead:
        return ()
    bare = tokenizer("", add_special_tokens=True, verbose=False)["input_ids"]
    return bare[:1] if bare and bare[0] == tokenizer.bos_token_id else ()


def _special(tokenizer: Any, which: str) -> int:
    """Return the id of BOS or EOS; BOS falls back on EOS, which plays both parts in GPT-2."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise ConfigError("the tokenizer has no EOS token, so no row could learn to stop; set tokenizer.eos_token")
    return bos if which == "bos" and bos is not None else eos


def _check_limits(max_source: int | None, max_target: int | None) -> None:
    if max_source is not None and max_source < 1:
        raise ConfigError(f"max_source = {max_source} leaves no source token; give a number from 1, or leave it out")
    if max_target is not None and max_target < 2:
        raise ConfigError(f"max_target = {max_target} leaves no token beside EOS; give a number from 2")
