"""The benchmark scripts run, in small, and what they compare is the same computation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foreword.data.files import data_folder

ROOT = Path(__file__).parents[2]
E2E = data_folder() is not None and (data_folder() / "e2e" / "trainset.csv").is_file()
needs_data = pytest.mark.skipif(not E2E, reason="no E2E data (set FOREWORD_DATA)")


def run(script, *arguments):
    """Run a benchmark with one thread and return the JSON of its last line, and all it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FOREWORD_DATA": str(data_folder())}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1]), done.stdout


@needs_data
@pytest.mark.slow
def test_train_throughput_compares_equal_gradients_in_less_memory(tmp_path):
    pytest.importorskip("peft")
    options = ["--layers", 1, "--batches", 1, "--repeats", 1, "--rows", 4, "--threads", 1, "--dtypes", "float32"]
    result, printed = run("train_throughput.py", *options, "--record", tmp_path / "record")
    assert [row["contender"] for row in result["rows"]] == ["peft", "ours", "ours, shared sources"]
    assert all(difference < 1e-5 for difference in result["gradient"].values())
    assert all(row["memory_ratio"] < 0.6 for row in result["rows"][1:])
    assert all(0 < row["of_ceiling"] < 1.5 for row in result["rows"])
    assert json.loads((tmp_path / "record.json").read_text()) == result
    assert (tmp_path / "record.txt").read_text() in printed


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("script", ["init_fit.py", "source_sharing.py"])
def test_learning_curves_fall(script, tmp_path):
    backbone = data_folder() / "models" / "stories260k"
    options = ["--backbone", backbone, "--steps", 4, "--seeds", 1, "--dev-sources", 2, "--rows", 4]
    options += ["--every", 2, "--per-source", 2] if script == "source_sharing.py" else []
    result, _ = run(script, *options, "--record", tmp_path / "record")
    for curve in result["curves"]:
        assert curve["points"][-1]["dev_loss"] < curve["points"][0]["dev_loss"]
        assert curve["points"][-1]["rows"] == 16
    if script == "init_fit.py":
        errors = {line["start"]: line["fit_error"] for line in result["lines"]}
        assert errors["exact least squares"] < 1e-5 < errors["regression, 500 steps"]


@pytest.mark.slow
def test_generate_throughput_compares_equal_answers(tmp_path):
    pytest.importorskip("peft")
    options = ["--rows", 3, "--new-tokens", 4, "--source-tokens", 8, "--repeats", 1, "--beams", 2]
    result, printed = run("generate_throughput.py", *options, "--record", tmp_path / "record")
    assert [line["contender"] for line in result["lines"]] == ["foreword", "stock cache", "peft"]
    assert all(line["equal"] == 3 for line in result["lines"])
    assert all(0 < line["of_ceiling"] < 1 for line in result["lines"])
    assert json.loads((tmp_path / "record.json").read_text()) == result
    assert (tmp_path / "record.txt").read_text() in printed
