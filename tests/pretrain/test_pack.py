import json
from pathlib import Path

import numpy as np
import pytest

from foreword.errors import ConfigError, DataError
from foreword.pretrain.batch import make_batch
from foreword.pretrain.corpus import fraction, read_documents, split_documents
from foreword.pretrain.pack import GIVEN, Mixture, encode_documents, open_stream, plain, read_row, rows_in, write_stream
from foreword.pretrain.prepare import DataConfig, prepare
from foreword.pretrain.tokenizer import load_tokenizer


def test_packing_loses_no_token(packed: Path, corpus_root: Path, tmp_path: Path):
    tokenizer = load_tokenizer(packed / "tokenizer")
    documents = list(read_documents(corpus_root / "corpora" / "wikipedia_en.txt.xz"))
    total = write_stream(tmp_path / "x.bin", encode_documents(tokenizer, documents))
    stream = open_stream(tmp_path / "x.bin")
    assert total == len(stream)
    assert tokenizer.decode(np.asarray(stream)).split("<|endoftext|>")[:-1] == documents


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64, 65])
def test_rows_hold_every_token_once_as_input_and_once_as_target(length: int):
    stream = np.arange(2, length + 2, dtype=np.uint16)
    rows = np.stack([read_row(stream, i, 8, pad=0) for i in range(rows_in(stream, 8))])
    inputs, targets = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    assert inputs[inputs > 0].tolist() == stream.tolist()
    assert targets[targets > 0].tolist() == stream[1:].tolist()


def test_an_epoch_of_the_mixture_reads_every_row_once():
    streams = {"a": np.arange(2, 402, dtype=np.uint16), "b": np.arange(1000, 1100, dtype=np.uint16)}
    mixture = Mixture(streams, {"a": 0.8, "b": 0.2}, context=10, pad=0, seed=3)
    rows = np.concatenate([mixture.rows(step, 5) for step in range(10)])
    assert sorted(rows[:, 0].tolist()) == sorted([*range(2, 402, 10), *range(1000, 1100, 10)])


def test_weights_are_kept_over_cycles_and_rows_follow_from_the_step():
    streams = {name: np.arange(2, 60_000, dtype=np.uint16) for name in "abc"}
    weights = {"a": 0.6, "b": 0.3, "c": 0.1}
    mixture = Mixture(streams, weights, context=16, pad=0, seed=0)
    counts = np.bincount(mixture.cycle, minlength=3) / len(mixture.cycle)
    assert np.allclose(counts, [0.6, 0.3, 0.1], atol=0.002)
    again = Mixture(streams, weights, context=16, pad=0, seed=0)
    assert (mixture.rows(777, 4) == again.rows(777, 4)).all()
    # The same draws in another batch size: the position is the draw, not the call.
    assert (mixture.rows(10, 4) == np.concatenate([again.rows(20, 2), again.rows(21, 2)])).all()


def test_a_missing_source_is_named():
    with pytest.raises(DataError, match="'poems'"):
        Mixture({"a": np.ones(4, dtype=np.uint16)}, {"poems": 1.0}, context=2, pad=0, seed=0)


def test_the_split_depends_on_the_document_alone(corpus_root: Path):
    path = corpus_root / "corpora" / "wikipedia_en.txt.xz"
    train, heldout = split_documents(path)
    assert heldout and not set(train) & set(heldout)
    assert all(fraction(text) < 0.04 for text in heldout) and all(fraction(text) >= 0.04 for text in train)


def test_prepared_data_state_what_they_hold(packed: Path, data_config: DataConfig):
    manifest = json.loads((packed / "manifest.json").read_text())
    for name, stream in manifest["streams"].items():
        assert (packed / f"{name}.bin").stat().st_size == 2 * stream["tokens"]
    assert prepare(data_config) == packed
    with pytest.raises(ConfigError, match=r"data\.tokens"):
        prepare(DataConfig(folder=packed, tokens=1))


def test_a_missing_corpus_names_the_nearest(packed: Path, corpus_root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FOREWORD_DATA", str(corpus_root))
    with pytest.raises(DataError, match="did you mean 'wikipedia_en'"):
        prepare(DataConfig(folder=packed.parent / "other", natural={"wikipedia": 1.0}, drop_overlap=False))


def test_parts_that_are_given_are_read_but_never_targets(packed):
    tokenizer = load_tokenizer(packed / "tokenizer")
    parts = (("name : Zorb<|endoftext|>", False), ("Zorb is a lamp.", True))
    (stored,) = encode_documents(tokenizer, [parts])
    (whole,) = encode_documents(tokenizer, [plain(parts)])
    assert plain(parts) == "name : Zorb<|endoftext|>Zorb is a lamp."
    assert (stored & (GIVEN - 1)).tolist() == whole.tolist()
    given = len(tokenizer("name : Zorb<|endoftext|>")["input_ids"])
    assert ((stored & GIVEN) > 0).tolist() == [True] * given + [False] * (len(whole) - given)

    rows = stored[None].astype(np.int64)
    batch = make_batch("causal", rows, np.random.default_rng(0), len(tokenizer))
    assert batch.inputs[0].tolist() == whole[:-1].tolist()
    assert batch.targets[0].tolist() == [-100] * (given - 1) + whole[given:].tolist()
    adapted = make_batch("prefix_lm", rows, np.random.default_rng(0), len(tokenizer))
    assert int(adapted.inputs.max()) < len(tokenizer) > int(adapted.targets.max())
