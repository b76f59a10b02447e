"""What people see, and where curves go."""

import io
import sys
import types

import pytest
from toy import metrics, recipe, run_config

from foreword.errors import MissingExtraError
from foreword.train.job import resume, train
from foreword.train.progress import Display
from foreword.train.track import open_sinks


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_away_from_a_terminal():
    stream = io.StringIO()
    with Display("prefix5", 20, stream=stream) as display:
        display.say("init data")
        for step in range(1, 21):
            display.update(step, 2.0 / step, 100)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "prefix5: init data"
    assert lines[-1].startswith("prefix5: step 20/20 loss 0.1000 ")
    assert lines[-1].endswith(" tok/s")
    assert len(lines) == 2  # not one a step


def test_a_bar_on_a_terminal_and_silence_when_asked():
    stream = Terminal()
    with Display("prefix5", 20, stream=stream) as display:
        display.update(10, 1.25, 100)
        display.say("dev at step 10")
    assert "10/20" in stream.getvalue()
    assert "loss 1.2500" in stream.getvalue()
    assert "dev at step 10" in stream.getvalue()
    quiet = Terminal()
    with Display("prefix5", 20, show=False, stream=quiet) as display:
        display.update(20, 1.0, 100)
        display.say("nothing")
    assert quiet.getvalue() == ""


def test_tensorboard_files_hold_the_curves(saved_llama, toy_task, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(run_config(saved_llama, toy_task, tmp_path / "run", track=["tensorboard"]), progress=False)
    events = EventAccumulator(str(result.run_dir / "tensorboard"))
    events.Reload()
    losses = [row["loss"] for row in metrics(result.run_dir) if "loss" in row]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses)
    assert [e.step for e in events.Scalars("dev_loss")] == [4, 8, 12]


def test_a_missing_tracker_names_its_extra(monkeypatch, tmp_path):
    for library in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(
            MissingExtraError, match=rf"track = '{library}' needs {library}: pip install 'foreword\[track\]'"
        ):
            open_sinks(tmp_path, recipe(track=(library,)))


def test_wandb_and_mlflow_get_every_step(saved_llama, toy_task, tmp_path, monkeypatch):
    """Stand-ins with the calls that the real libraries have; neither is installed for tests."""
    got = {"wandb": [], "mlflow": [], "closed": []}
    run = types.SimpleNamespace(
        id="w-7",
        log=lambda values, step: got["wandb"].append((step, values)),
        finish=lambda: got["closed"].append("wandb"),
    )
    wandb = types.SimpleNamespace(init=lambda **settings: got.update(settings=settings) or run)
    mlflow = types.SimpleNamespace(
        start_run=lambda **given: got.update(given=given) or types.SimpleNamespace(
            info=types.SimpleNamespace(run_id="r")
        ),
        log_dict=lambda values, file, run_id: got.update(config=values),
        log_metrics=lambda values, step, run_id: got["mlflow"].append((step, values)),
        end_run=lambda: got["closed"].append("mlflow"),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    result = train(run_config(saved_llama, toy_task, tmp_path / "run", track=["wandb", "mlflow"]), progress=False)
    assert got["wandb"] == got["mlflow"]
    assert len(got["wandb"]) == len(metrics(result.run_dir)) == 15
    assert got["wandb"][0][1]["train/loss"] == metrics(result.run_dir)[0]["loss"]
    assert got["settings"]["project"] == "foreword"
    assert got["settings"]["config"]["steps"] == got["config"]["steps"] == 12
    assert got["closed"] == ["wandb", "mlflow"]
    assert "id" not in got["settings"] and got["given"]["run_id"] is None, "a run that starts has no name yet"
    resume(result.run_dir, progress=False)
    assert (got["settings"]["id"], got["settings"]["resume"]) == ("w-7", "allow") and got["given"]["run_id"] == "r"
