"""A tiny corpus and its packed data, made once: the pretraining tests need nothing from outside."""

import lzma
import random
from pathlib import Path

import pytest
import yaml

from foreword.pretrain.copying.values import Lexicon, ValueMaker
from foreword.pretrain.prepare import DataConfig, prepare

SOURCES = {"wikipedia_en": 0.7, "dialogue_sgd": 0.3}


def make_text(rng: random.Random, sentences: int) -> str:
    maker = ValueMaker(rng, Lexicon())
    return " ".join(
        f"In {maker.year()} the {maker.word()} met {maker.person()} near {maker.place()}." for _ in range(sentences)
    )


@pytest.fixture(scope="session")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "corpora").mkdir()
    rng = random.Random(5)
    for source in SOURCES:
        documents = [make_text(rng, 12) + "\n" + make_text(rng, 6) for _ in range(120)]
        with lzma.open(root / "corpora" / f"{source}.txt.xz", "wt", encoding="utf-8", preset=0) as file:
            file.write("\n<|endoftext|>\n".join(documents))
    return root


@pytest.fixture(scope="session")
def data_config(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return DataConfig(
        folder=tmp_path_factory.mktemp("packed") / "data",
        tokens=60_000,
        natural=dict(SOURCES),
        vocabulary=800,
        tokenizer_chars=120_000,
        heldout_chars=4000,
        drop_overlap=False,
    )


@pytest.fixture(scope="session")
def packed(data_config: DataConfig, corpus_root: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOREWORD_DATA", str(corpus_root))
        return prepare(data_config)


@pytest.fixture
def recipe(packed: Path, data_config: DataConfig, tmp_path: Path) -> Path:
    """A recipe of the smallest decoder on the packed data, run in `tmp_path/runs`."""
    tree = {
        "name": "tiny",
        "family": "decoder",
        "size": "tiny",
        "objective": "causal",
        "steps": 8,
        "run": str(tmp_path / "runs"),
        "data": {
            "folder": str(packed),
            "tokens": data_config.tokens,
            "natural": dict(SOURCES),
            "vocabulary": data_config.vocabulary,
            "tokenizer_chars": data_config.tokenizer_chars,
            "heldout_chars": data_config.heldout_chars,
            "drop_overlap": False,
        },
        "optim": {"warmup_steps": 2},
        "decay_copy_share": 0.6,
        "context": 48,
        "positions": 256,
        "micro_rows": 3,
        "accumulation": 2,
        "device": "cpu",
        "precision": "float32",
        "compile": False,
        "log_every": 1,
        "eval_every": 4,
        "eval_tokens": 96,
        "save_every": 3,
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path
