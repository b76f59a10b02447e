"""The serving benchmark runs, in small, and PEFT's grouped runs make the very tokens that our mixed batch makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_benchmark_compares_equal_answers(tmp_path):
    pytest.importorskip("peft")
    options = ["--layers", "1", "--requests", "6", "--new-tokens", "3", "--repeats", "1", "--threads", "1"]
    command = [sys.executable, str(ROOT / "benchmarks" / "serve_throughput.py"), *options]
    command += ["--forewords", "3", "--peft-batches", "1", "2", "--record", str(tmp_path / "record")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout.strip().splitlines()[-1])["rows"]
    assert row["same_answers_as_peft"] == 6 and row["forewords"] == 3
    assert min(row["tok_per_sec"].values()) > 0 and 0 < row["of_ceiling"] < 1.5
    assert (tmp_path / "record.json").is_file() and (tmp_path / "record.txt").read_text() in done.stdout
