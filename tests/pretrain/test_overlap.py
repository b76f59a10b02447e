import json
import os
from pathlib import Path

import pytest

from foreword.pretrain.overlap import OverlapFilter, texts_in

PASSAGE = "the quick brown fox jumps over the lazy dog while nine old owls watch from their tall dark trees in silence"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "glue" / "sst2").mkdir(parents=True)
    (tmp_path / "glue" / "sst2" / "test.tsv").write_text(f"sentence\tlabel\n{PASSAGE}\t1\n")
    return tmp_path


def test_shared_13_grams_are_counted_and_documents_dropped(root: Path):
    overlap = OverlapFilter(root)
    one_gram = " ".join(PASSAGE.split()[:13]) + " then something else entirely happened to all of them"
    documents = [f"Intro. {PASSAGE.upper()}! And more.", one_gram, "nothing shared here at all " * 9]
    assert list(overlap.keep(documents)) == documents[1:]
    assert (overlap.report.documents, overlap.report.dropped, overlap.report.touched["sst2"]) == (3, 1, 2)


def test_hashes_are_of_13_words(root: Path):
    overlap = OverlapFilter(root)
    words = PASSAGE.split()
    assert len(overlap.hashes(" ".join(words[:12]))) == 0
    assert len(overlap.hashes(" ".join(words[:15]))) == 3
    assert len(overlap.grams["sst2"]) == len(words) + 1 - 13 + 0


def test_all_strings_of_a_file_are_read(tmp_path: Path):
    (tmp_path / "a.json").write_text("# header\n" + json.dumps([["x", {"k": ["y"]}], 3]))
    (tmp_path / "b.jsonl").write_text('{"q": "x"}\n{"q": "y"}\n')
    (tmp_path / "c.csv").write_text('mr,ref\n"x, 1","y ""q"""\n')
    assert list(texts_in(tmp_path / "a.json")) == ["x", "y"]
    assert list(texts_in(tmp_path / "b.jsonl")) == ["x", "y"]
    assert list(texts_in(tmp_path / "c.csv")) == ["mr", "ref", "x, 1", 'y "q"']


def test_the_real_evaluation_sets_are_found():
    folder = os.environ.get("FOREWORD_DATA")
    root = Path(folder) if folder else Path(__file__).parents[3] / "shared" / "data"
    if not (root / "e2e").is_dir():
        pytest.skip("needs FOREWORD_DATA with the evaluation sets")
    assert all(len(grams) > 1000 for grams in OverlapFilter(root).grams.values())
