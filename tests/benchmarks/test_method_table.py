"""The comparison table: figures read from run directories are what the runs took, and intervals are Student's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foreword.backbone import load_backbone
from foreword.config import dump_yaml
from foreword.data.files import write_atomic
from foreword.evaluate.job import evaluate
from foreword.train.job import train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def table(monkeypatch):
    """The benchmark script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import method_table

    return method_table


def test_the_interval_is_students_of_the_mean(table):
    low, high = table.interval([0.1, 0.2, 0.3])  # t(2, 97.5 %) = 4.3027, sd 0.1
    assert (low, high) == pytest.approx((0.2 - 4.30265 * 0.1 / 3**0.5, 0.2 + 4.30265 * 0.1 / 3**0.5), abs=1e-6)
    assert table.interval([0.1]) is None


def test_the_seconds_of_all_processes_add_up(table):
    clock = [0.0, 3.0, 5.0, 0.0, 7.0, 0.0, 1.0, 2.0]
    assert table.process_seconds([{"seconds": second} for second in clock]) == 5.0 + 7.0 + 2.0


def test_one_command_makes_the_table_from_runs(table, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    from toy import run_config, save_backbone, save_task

    backbone, task = save_backbone(tmp_path / "backbone"), save_task(tmp_path / "task")
    tree = json.loads(task.read_text())
    write_atomic(task, json.dumps({**tree, "metrics": ["exact_match"]}))
    short = {"steps": 1, "dev": {}}
    methods = {
        "prefix": short,
        "adapter": {"method": "adapter", "adapter": {"bottleneck": 3}, **short},
        "shots": {"method": "written", "written": {"shots": 2}, "steps": None, "dev": {}},
    }
    for name, changes in methods.items():
        for seed in (0, 1):
            run = tmp_path / "runs" / f"{name}-seed{seed}"
            config = run_config(backbone, task, run, seed=seed, **changes)
            dump_yaml(config, tmp_path / f"{name}.yaml")
            train(config, progress=False)
            evaluate(run, split="dev", resamples=0).write(run / "dev")
    recipes = [str(tmp_path / f"{name}.yaml") for name in methods]
    command = [sys.executable, str(ROOT / "benchmarks" / "method_table.py"), *recipes, "--score", "--seeds", "2"]
    command += ["--split", "dev", "--runs", str(tmp_path / "runs"), "--record", str(tmp_path / "record.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["lines"] == {
        "untouched": 1,
        "prefix": 2,
        "adapter": 2,
        "shots": 2,
    }
    lines = json.loads((tmp_path / "record.json").read_text())
    untouched = lines.pop("untouched")  # scored once, and it cost nothing to make
    assert len(untouched["EM"]["values"]) == 1 and untouched["runs"] == [] and untouched["trained"] is None
    for name, line in lines.items():
        assert f"| {name} | 2 | " in done.stdout
        assert len(line["runs"]) == 2 and 50e6 < line["peak_bytes"] < 1e11
        assert len(line["EM"]["values"]) == 2
    assert lines["adapter"]["trained"] == 3 * (2 * 64 + 65 * 3 + 4 * 64)
    stored = tmp_path / "runs" / "adapter-seed0" / "artifact" / "adapter_model.safetensors"
    assert lines["adapter"]["stored_bytes"] == stored.stat().st_size
    kept = sum(shape.width for shape in load_backbone(backbone).geometry.sites.values()) * 4 * 4
    assert kept < lines["prefix"]["stored_bytes"] < kept + 1000  # the MLP that only training needs is not in it
    assert lines["shots"]["trained"] == 0 and 0 < lines["shots"]["stored_bytes"] < 50
