"""Corpora and generators → tokenizer, packed token streams, held-out streams and a manifest, in one directory."""

import dataclasses
import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from foreword.config import to_dict
from foreword.errors import ConfigError
from foreword.pretrain.copying.briefs import brief_documents
from foreword.pretrain.copying.echoes import echo_documents
from foreword.pretrain.copying.labels import label_documents, span_documents
from foreword.pretrain.copying.records import record_documents
from foreword.pretrain.copying.values import Lexicon, read_lexicon
from foreword.pretrain.corpus import NATURAL_WEIGHTS, corpus_path, data_root, shuffled, split_documents, take_chars
from foreword.pretrain.overlap import OverlapFilter
from foreword.pretrain.pack import Document, encode_documents, plain, write_stream
from foreword.pretrain.tokenizer import VOCABULARY_SIZE, load_tokenizer, order_by_frequency, save_tokenizer, train_bpe

_CHARS_PER_TOKEN = 4.6  # a little above what the tokenizer reaches, so that enough text is read


@dataclass(frozen=True)
class DataConfig:
    """What is packed. Weights are shares of the rows, within the natural and within the copy-rich part."""

    folder: Path = Path("runs/pretrain-data")
    tokens: int = 60_000_000  # of natural and copy-rich text together; a source with less is repeated in training
    copy_share: float = 0.40
    natural: dict[str, float] = field(default_factory=lambda: dict(NATURAL_WEIGHTS))
    copying: dict[str, float] = field(
        default_factory=lambda: {"records": 0.52, "echoes": 0.32, "labels": 0.08, "spans": 0.08}
    )
    tokenizer: Path | None = None  # a tokenizer directory; trained on the mixture when left out
    vocabulary: int = VOCABULARY_SIZE
    tokenizer_chars: int = 24_000_000
    heldout_chars: int = 400_000  # kept per source
    drop_overlap: bool = True  # drop documents that share 13-grams with evaluation sets
    seed: int = 0

    def weights(self, copy_share: float) -> dict[str, float]:
        """Return the share of the rows of every source when `copy_share` of them are copy-rich."""
        natural, copying = sum(self.natural.values()), sum(self.copying.values())
        return {name: weight / natural * (1 - copy_share) for name, weight in self.natural.items()} | {
            name: weight / copying * copy_share for name, weight in self.copying.items()
        }


def prepare(config: DataConfig) -> Path:
    """Return the directory of the packed data, made now unless it is there already.

    It holds `tokenizer/`, `train/*.bin`, `heldout/*.bin` (uint16 tokens) and `manifest.json` with the config, the
    tokens and digests of every stream and the overlap report.

    Raises:
        ConfigError: the directory was made from another config, or `tokenizer` holds none.
        DataError: a corpus is missing.
    """
    manifest = config.folder / "manifest.json"
    wanted = _settings(config)
    if manifest.is_file():
        found = json.loads(manifest.read_text(encoding="utf-8"))["config"]
        for name, value in wanted.items():
            if found.get(name) != value:
                raise ConfigError(
                    f"data.{name} = {value!r}, but {str(manifest)!r} has {found.get(name)!r}; name a new folder"
                )
        return config.folder
    if config.tokenizer is not None and not (config.tokenizer / "tokenizer.json").is_file():
        raise ConfigError(
            f"data.tokenizer = {str(config.tokenizer)!r} holds no tokenizer.json; name the directory of a tokenizer or "
            "of a backbone (recipes name it from the repository's root), or leave it out to train one"
        )
    # Everything is written beside the final place, so a killed preparation leaves no half-made directory.
    partial = config.folder.with_name(config.folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("train", "heldout"):
        (partial / name).mkdir(parents=True)
    report = _write_all(config, partial)
    (partial / "manifest.json").write_text(json.dumps({"config": wanted, **report}, indent=2), encoding="utf-8")
    partial.rename(config.folder)
    return config.folder


def _settings(config: DataConfig) -> dict[str, Any]:
    tree = to_dict(config)
    del tree["folder"], tree["tokenizer"]
    return tree


def _write_all(config: DataConfig, folder: Path) -> dict[str, Any]:
    weights = config.weights(config.copy_share)
    overlap = OverlapFilter(data_root()) if config.drop_overlap else None
    train, heldout = read_sources(config, weights, overlap)
    lexicon = read_lexicon(itertools.chain.from_iterable(documents[:400] for documents in train.values()))
    tokenizer = _tokenizer(config, folder / "tokenizer", train, lexicon)
    streams: dict[str, dict[str, Any]] = {}
    for split, sources in (("train", train), ("heldout", heldout)):
        for name, documents in sources.items():
            limit = round(config.tokens * weights[name]) if split == "train" else None
            streams[f"{split}/{name}"] = _write(tokenizer, folder / split / f"{name}.bin", documents, limit)
    for name in config.copying:
        # Echoes are made from the training documents only, so no held-out sentence is seen through them.
        made = copy_documents(name, random.Random(f"{config.seed}/{name}"), lexicon, train)
        streams[f"train/{name}"] = _write(
            tokenizer, folder / "train" / f"{name}.bin", made, round(config.tokens * weights[name])
        )
        fresh = itertools.islice(
            copy_documents(name, random.Random(f"{config.seed}/{name}/heldout"), lexicon, heldout), 150
        )
        streams[f"heldout/{name}"] = _write(tokenizer, folder / "heldout" / f"{name}.bin", fresh, None)
    return {"streams": streams, "overlap": dataclasses.asdict(overlap.report) if overlap else None}


def read_sources(
    config: DataConfig, weights: dict[str, float], overlap: OverlapFilter | None
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return (training, held-out) documents by natural source, as many as the token budget needs, in a seeded order."""
    train: dict[str, list[str]] = {}
    heldout: dict[str, list[str]] = {}
    for name in config.natural:
        documents, kept_out = split_documents(corpus_path(name))
        enough = take_chars(shuffled(documents, config.seed), round(config.tokens * weights[name] * _CHARS_PER_TOKEN))
        train[name] = list(overlap.keep(enough)) if overlap else enough
        heldout[name] = take_chars(shuffled(kept_out, config.seed), config.heldout_chars)
    return train, heldout


def copy_documents(
    name: str, rng: random.Random, lexicon: Lexicon, sources: dict[str, list[str]]
) -> Iterator[Document]:
    """Return the endless documents of one copy-rich source.

    Raises:
        ConfigError: there is no such generator.
    """
    if name == "records":
        return record_documents(rng, lexicon)
    if name == "briefs":
        return brief_documents(rng, lexicon)
    if name == "echoes":
        # Old novels make poor facts; every other document counts alike, whatever its source.
        pool = [
            d for source, documents in sources.items() if source not in ("novels100", "eltec_eng") for d in documents
        ]
        return echo_documents(rng, pool or [d for documents in sources.values() for d in documents])
    if name == "labels":
        return label_documents(rng, lexicon, {source: documents for source, documents in sources.items() if documents})
    if name == "spans":
        return span_documents(rng, lexicon)
    raise ConfigError(f"data.copying names {name!r}; valid: records, briefs, echoes, labels, spans")


def _tokenizer(
    config: DataConfig, folder: Path, train: dict[str, list[str]], lexicon: Lexicon
) -> PreTrainedTokenizerFast:
    if config.tokenizer is not None:
        # The directory may be a backbone's, whose weights and card are not wanted here.
        folder.mkdir()
        for pattern in ("*token*.json", "vocab*", "merges*"):
            for file in sorted(config.tokenizer.glob(pattern)):
                shutil.copy(file, folder)
        return load_tokenizer(folder)
    sample = list(_sample(config, train, lexicon))
    save_tokenizer(order_by_frequency(train_bpe(sample, config.vocabulary), sample), folder)
    return load_tokenizer(folder)


def _sample(config: DataConfig, train: dict[str, list[str]], lexicon: Lexicon) -> Iterator[str]:
    """Yield `tokenizer_chars` characters in the mixture's proportions, but with a tenth of it copy-rich.

    Invented names would otherwise fill the vocabulary with their syllables.
    """
    share = min(config.copy_share, 0.1)
    for name, weight in config.weights(share).items():
        budget = round(config.tokenizer_chars * weight)
        rng = random.Random(f"sample/{name}")
        made: Iterable[Document] = train.get(name) or copy_documents(name, rng, lexicon, train)
        for document in map(plain, made):
            if budget <= 0:
                break
            yield document[:budget]
            budget -= len(document)


def _write(
    tokenizer: PreTrainedTokenizerFast, path: Path, documents: Iterable[Document], limit: int | None
) -> dict[str, Any]:
    tokens = write_stream(path, encode_documents(tokenizer, documents), limit)
    return {"tokens": tokens, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
