"""kill -9 at random moments, resumed each time: the same artefact and the same metrics, to the last bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy import run_config, save_backbone, save_task

import foreword
from foreword.config import to_dict
from foreword.train.job import train

KILLS = 20
ROOT = Path(foreword.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture
def config(tmp_path):
    """An MLP prefix with dropout, so that random state counts; a checkpoint every third step of sixty."""
    backbone, task = save_backbone(tmp_path / "backbone"), save_task(tmp_path / "task")
    prompt = {"reparam": "mlp", "reparam_width": 256, "length": 4, "dropout": 0.1}
    settings = {"steps": 60, "dev": {"every": 7}, "checkpoint": {"every": 3}, "log_every": 5, "prompt": prompt}
    return lambda name: run_config(backbone, task, tmp_path / name, **settings)


def assert_same(run: Path, whole: Path) -> None:
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    names = sorted(path.name for path in (whole / "artifact").iterdir())
    assert sorted(path.name for path in (run / "artifact").iterdir()) == names
    assert len(names) >= 4
    for name in names:
        assert (run / "artifact" / name).read_bytes() == (whole / "artifact" / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_change_nothing(config, tmp_path):
    whole = train(config("whole"), progress=False).run_dir
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config("unused"))))
    driver = [
        sys.executable,
        str(Path(__file__).with_name("forked.py")),
        str(tmp_path / "config.json"),
        "7",
        str(KILLS),
    ]
    ran = subprocess.run(driver, capture_output=True, text=True, env=ENVIRONMENT, timeout=580)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["kills"] == KILLS
    assert report["half_written"] >= 1, report  # a checkpoint was cut off in the middle
    assert len(set(report["steps"])) >= 5, report  # the kills fell at different places of the run
    assert len(report["finished"]) >= 2
    for name in report["finished"]:
        assert_same(tmp_path / name, whole)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_command_line_goes_on_after_a_kill(config, tmp_path):
    """The real program, killed once in its own process and resumed with --resume."""
    whole = train(config("whole"), progress=False).run_dir
    (tmp_path / "recipe.yaml").write_text(json.dumps(to_dict(config("killed"))))
    words = [sys.executable, "-m", "foreword", "train"]
    with (tmp_path / "stderr").open("w") as log:
        child = subprocess.Popen([*words, str(tmp_path / "recipe.yaml")], env=ENVIRONMENT, stderr=log)
        while not list((tmp_path / "killed" / "checkpoints").glob("step-*")):
            assert child.poll() is None, (tmp_path / "stderr").read_text()
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "artifact").exists()
    again = subprocess.run(
        [*words, "--resume", str(tmp_path / "killed")], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert_same(tmp_path / "killed", whole)
