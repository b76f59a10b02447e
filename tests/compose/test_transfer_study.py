"""The transfer study's script: its summary by hand, and a whole run in small, which is not made twice."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from foreword.data.files import data_folder

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
report = pytest.importorskip("transfer_report")
runs = pytest.importorskip("transfer_runs")

FOLDER = data_folder()
needs_data = pytest.mark.skipif(
    FOLDER is None or not (FOLDER / "rnnlg").is_dir() or not (FOLDER / "models" / "stories260k").is_dir(),
    reason="no RNNLG data or stories260k model (set FOREWORD_DATA)",
)


def cell(saved, plain=3.0, final=2.0, score=None):
    start = {"curve": {"values": [4.0]}, "final": {"loss": plain, "score": score}}
    speed = {"steps_saved": saved, "comparable": 2.0, "convergence": 1.0}
    near = {"curve": {"values": [3.5]}, "final": {"loss": final, "score": score}, "speed": speed}
    return {"plain": start, "near": near}


def test_the_sign_test_by_hand():
    assert report.sign_test(6, 0) == pytest.approx(2 / 64)
    assert report.sign_test(0, 0) == 1.0 and report.sign_test(3, 3) == 1.0


def test_a_start_helps_only_if_a_sign_test_says_so():
    (line,) = report.start_lines([(f"t{n}", cell(10.0)) for n in range(6)])
    assert (line["sooner"], line["later"], line["final_better"]) == (6, 0, 6)
    assert line["final_loss_gain"] == pytest.approx(1.0) and line["loss_gain_before_training"] == pytest.approx(0.5)
    assert line["verdict"] == "better in steps (p = 0.031); better in final loss (p = 0.031)"
    (line,) = report.start_lines([(f"t{n}", cell(10.0)) for n in range(3)] + [("t3", cell(-math.inf, final=9.0))])
    assert line["verdict"].startswith("no clear difference in steps (3 of 4 better")
    (line,) = report.start_lines([(f"t{n}", cell(-math.inf, final=9.0)) for n in range(6)])
    assert line["verdict"] == "worse in steps (p = 0.031); worse in final loss (p = 0.031)"


def test_seeds_of_one_task_count_once():
    (line,) = report.start_lines([("t", cell(10.0))] * 5 + [("u", cell(s)) for s in (-5.0, -5.0, 10.0)])
    assert (line["runs"], line["sooner"], line["later"], line["p_sooner"]) == (8, 1, 1, 1.0)


def test_infinite_figures_are_words_in_json():
    assert report._strict({"a": [math.inf, 1.0], "b": math.nan}) == {"a": ["inf", 1.0], "b": "nan"}


def test_relative_transfer_is_averaged_by_family():
    table = [[1.0, 0.5, -0.2], [0.3, 1.0, math.nan], [0.1, -0.1, 1.0]]
    same, other = report.family_lines([table], ["e2e", "webnlg", "sst2"])
    assert same == {"sources": "same family", "pairs": 2, "median_relative": pytest.approx(0.4), "above_0": 2}
    assert (other["pairs"], other["above_0"]) == (3, 1) and other["median_relative"] == pytest.approx(-0.1)


def test_projectors_never_see_held_out_tasks_nor_their_whole_families():
    settings = runs.Settings(
        "a", [], ["e2e", "rnnlg_hotel", "sst2", "aeslc"], held_inside=["rnnlg_hotel"], held_outside=["aeslc"]
    )
    assert settings.training_tasks == ["e2e", "sst2"]
    assert runs.seed_of("a", "e2e", 0) != runs.seed_of("a", "sst2", 0) != runs.seed_of("b", "sst2", 0)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_the_study_runs_in_small_and_goes_on_where_it_stopped(tmp_path, kind):
    model = str(FOLDER / "models" / "stories260k")
    small = "--steps 2 --every 1 --rows 2 --limit 20 --dev-limit 2 --generate 0 --max-source 24 --seeds 1 --length 3"
    words = [*small.split(), "--query-steps", "1", "--projector-steps", "2", "--kind", kind]
    words += ["--backbone", model, "--pair", model, model, "--out", str(tmp_path / "study")]
    words += ["--tasks", "rnnlg_restaurant", "rnnlg_hotel", "sst2", "mrpc"]
    words += ["--held-inside", "rnnlg_hotel", "mrpc", "--held-outside"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FOREWORD_DATA": str(FOLDER)}

    def run(*more):
        command = [sys.executable, str(ROOT / "benchmarks" / "transfer_study.py"), *words, *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "study" / "summary.json").read_text(encoding="utf-8")
    summary = json.loads(text)
    assert {line["start"] for line in summary["starts"]} == {
        "most similar", "mixture of 3", "best zero-shot (oracle)", "least similar (control)"
    }
    assert [line["runs"] for line in summary["starts"]] == [4] * 4
    recycled = next(line for line in summary["models"] if line["method"].startswith("recycled"))
    assert recycled["runs"] == 2 and len(summary["models"]) == (6 if kind == "prompt" else 3)
    assert len(summary["model_starts"]) == 4  # two methods, for the one pair and for all pairs
    page = (tmp_path / "study" / "summary.html").read_text(encoding="utf-8")
    assert "most similar" in page and "recycled" in page
    again = run()
    assert re.search(r"\d s  (training|making) ", done.stdout)
    assert again.returncode == 0 and not re.search(r"\d s  (training|making|carrying) ", again.stdout)
    assert (tmp_path / "study" / "summary.json").read_text(encoding="utf-8") == text
    stopped = tmp_path / "study" / "runs" / Path(model).name / "mrpc" / "own-s0"  # as if before its first checkpoint
    for part in ("artifact", "checkpoints"):
        shutil.rmtree(stopped / part)
    shutil.rmtree(tmp_path / "study" / "pieces")
    assert run().returncode == 0
    assert (tmp_path / "study" / "summary.json").read_text(encoding="utf-8") == text
    other = run("--rows", "3")
    assert other.returncode != 0 and "other settings" in other.stderr
