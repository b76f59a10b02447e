"""The run directory: atomic, rotating, without pickles, and honest about damage."""

import json

import pytest
import torch
from toy import metrics, run_config

from foreword.errors import ConfigError, TrainingError
from foreword.train.job import resume, train
from foreword.train.record import RunRecord, discard_unstarted, read_best, read_config, read_latest


def record(folder, **settings):
    (folder / "run").mkdir(exist_ok=True)
    return RunRecord(folder / "run", **settings)


def save(one, step, best=None):
    one.save(step, {"learner.x": torch.full((2,), float(step))}, {"best": {"name": best}})


def names(one):
    return sorted(path.name for path in one.checkpoints.iterdir())


def test_the_newest_checkpoints_and_the_best_they_name_stay(tmp_path):
    one = record(tmp_path, keep=2)
    assert one.last_checkpoint() == "none yet"
    assert one.save_best(1, {"x": torch.ones(2)}) == "best-00000001"
    save(one, 1, "best-00000001")
    save(one, 2, "best-00000001")
    one.save_best(3, {"x": torch.ones(2) * 3})
    save(one, 3, "best-00000003")
    assert names(one) == ["best-00000001", "best-00000003", "step-00000002", "step-00000003"]
    save(one, 4, "best-00000003")
    assert names(one) == ["best-00000003", "step-00000003", "step-00000004"]
    assert torch.equal(read_best(one.directory, "best-00000003")["x"], torch.full((2,), 3.0))
    assert torch.equal(read_latest(one.directory).tensors["learner.x"], torch.full((2,), 4.0))
    assert one.last_checkpoint() == "step-00000004"
    one.close()


def test_only_safetensors_and_json_are_written(saved_llama, toy_task, tmp_path):
    result = train(run_config(saved_llama, toy_task, tmp_path / "run"), progress=False)
    files = [path for path in (result.run_dir / "checkpoints").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())


def test_leftovers_of_a_cut_off_write_are_removed(tmp_path):
    one = record(tmp_path)
    save(one, 1)
    (one.checkpoints / ".step-00000002").mkdir()
    (one.checkpoints / ".old-step-00000000").mkdir()
    (one.checkpoints / ".step-00000002" / "tensors.safetensors").write_bytes(b"half")
    one.close()
    again = record(tmp_path)
    assert names(again) == ["step-00000001"]
    save(again, 2)
    assert names(again) == ["step-00000001", "step-00000002"]
    again.close()


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    one = record(tmp_path)
    one.save_best(5, {"x": torch.zeros(1)})
    one.save_best(5, {"x": torch.ones(1)})
    assert read_best(one.directory, "best-00000005")["x"].item() == 1
    assert names(one) == ["best-00000005"]
    one.close()


def test_metrics_are_cut_to_the_checkpoint(tmp_path):
    one = record(tmp_path)
    one.metrics({"step": 1})
    save(one, 1)
    one.metrics({"step": 2})
    one.close()
    again = record(tmp_path)
    again.go_back_to(read_latest(again.directory))
    again.metrics({"step": 7})
    again.close()
    assert metrics(tmp_path / "run") == [{"step": 1}, {"step": 7}]
    fresh = record(tmp_path)
    fresh.go_back_to(None)
    fresh.close()
    assert metrics(tmp_path / "run") == []


def test_lost_metrics_are_noticed(tmp_path):
    one = record(tmp_path)
    one.metrics({"step": 1})
    save(one, 1)
    one.close()
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    again = record(tmp_path)
    with pytest.raises(TrainingError, match=r"metrics.jsonl has 0 bytes, the checkpoint was saved at 12"):
        again.go_back_to(read_latest(again.directory))
    again.close()


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named_and_the_older_one_serves(saved_llama, toy_task, tmp_path, file):
    result = train(run_config(saved_llama, toy_task, tmp_path / "run"), progress=False)
    rows = (result.run_dir / "metrics.jsonl").read_bytes()
    newest = result.run_dir / "checkpoints" / "step-00000012"
    (newest / file).write_bytes((newest / file).read_bytes()[:100])
    with pytest.raises(TrainingError, match=r"step-00000012.*is damaged .*delete it to go on from an older one"):
        resume(result.run_dir, progress=False)
    import shutil

    shutil.rmtree(newest)
    assert resume(result.run_dir, progress=False).steps == 12
    assert (result.run_dir / "metrics.jsonl").read_bytes() == rows


def test_other_data_and_another_backbone_are_noticed(saved_llama, toy_task, tmp_path):
    from toy import save_backbone, save_task

    task, backbone = save_task(tmp_path / "task"), save_backbone(tmp_path / "backbone")
    result = train(run_config(backbone, task, tmp_path / "run"), progress=False)
    rows = (tmp_path / "task" / "rows.jsonl").read_text()
    (tmp_path / "task" / "rows.jsonl").write_text(rows.replace("aa", "bb"))
    with pytest.raises(TrainingError, match="training data is not what this run was started with"):
        resume(result.run_dir, progress=False)
    (tmp_path / "task" / "rows.jsonl").write_text(rows)
    save_backbone(tmp_path / "backbone", "mistral")
    with pytest.raises(TrainingError, match="backbone is not what this run was started with"):
        resume(result.run_dir, progress=False)


def test_a_moved_run_resumes(saved_llama, toy_task, tmp_path):
    result = train(run_config(saved_llama, toy_task, tmp_path / "run", steps=4), progress=False)
    result.run_dir.rename(tmp_path / "moved")
    again = resume(tmp_path / "moved", run_config(saved_llama, toy_task, tmp_path / "run", steps=4), progress=False)
    assert again.run_dir == tmp_path / "moved"
    assert read_config(tmp_path / "moved").run_dir == str(tmp_path / "moved")


def test_only_a_run_without_steps_is_discarded(tmp_path):
    one = record(tmp_path)
    (one.directory / "config.yaml").write_text("task: e2e\n")
    (one.directory / "mine.txt").write_text("kept")
    one.metrics({"step": 1})
    one.close()
    discard_unstarted(one.directory)
    assert (one.directory / "config.yaml").exists()
    (one.directory / "metrics.jsonl").write_text("")
    discard_unstarted(one.directory)
    assert [path.name for path in one.directory.iterdir()] == ["mine.txt"]
    with pytest.raises(ConfigError, match=r"holds no config\.yaml"):
        read_config(one.directory)
