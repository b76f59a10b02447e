"""The command line end to end on a tiny backbone: every verb, and what it leaves on the disk."""

import json
import subprocess
import sys
import time

import pytest
import torch
import yaml

import foreword as fw
from foreword import cli


def test_version_and_help_answer_at_once():
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-m", "foreword", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"foreword {fw.__version__}"
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("verb", ["train", "generate", "evaluate", "doctor", "convert", "pretrain", "demo"])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main([verb, "--help"])
    assert leaving.value.code == 0
    assert verb in capsys.readouterr().out


def test_a_run_directory_holds_all_of_the_run(place):
    names = {path.name for path in place.run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "artifact", "checkpoints"} <= names
    config = yaml.safe_load((place.run / "config.yaml").read_text())
    assert config["prompt"]["length"] == 3 and config["steps"] == 4
    steps = [json.loads(line)["step"] for line in (place.run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_overrides_go_over_the_recipe_and_options_over_both(place, foreword, tmp_path):
    out = tmp_path / "run"
    found = foreword("train", place.recipe, "prompt.length=5", "seed=3", "--seed", 7, "--out", out)
    assert found.code == 0 and "4 steps" in found.out
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["prompt"]["length"], config["seed"], config["prompt"]["kind"]) == (5, 7, "prefix")


def test_a_dry_run_builds_everything_and_writes_nothing(place, foreword, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = foreword("train", place.recipe, "--dry-run")
    assert found.code == 0 and "dry run: prefix3" in found.out and "trainable parameters" in found.out
    assert not list(tmp_path.iterdir())


def test_training_twice_gives_the_same_metrics_and_artefact(place, foreword, tmp_path):
    assert foreword("train", place.recipe, "--out", tmp_path / "again").code == 0
    for name in ("metrics.jsonl", "artifact/adapter_model.safetensors", "artifact/foreword.json"):
        assert (tmp_path / "again" / name).read_bytes() == (place.run / name).read_bytes()


def test_resuming_a_finished_run_changes_nothing(place, foreword):
    before = (place.run / "artifact" / "adapter_model.safetensors").read_bytes()
    found = foreword("train", "--resume", place.run)
    assert found.code == 0
    assert (place.run / "artifact" / "adapter_model.safetensors").read_bytes() == before


def test_evaluate_scores_the_run_beside_the_untouched_backbone(place, foreword, tmp_path):
    found = foreword("evaluate", place.run, "--split", "dev", "--resamples", 20, "--out", tmp_path / "scores")
    assert found.code == 0
    lines = found.out.splitlines()
    assert lines[0] == "letters, dev, 2 records"
    assert lines[1].startswith("untouched: ") and lines[2].startswith("prefix 3: ")
    assert "(unchanged)" in lines[3]
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["subject"] == "prefix 3" and scores["forgetting"]["unchanged"] is True
    assert "untouched" in scores["others"]
    rows = [json.loads(line) for line in (tmp_path / "scores" / "predictions.jsonl").read_text().splitlines()]
    assert [row["source"] for row in rows] == ["mn", "op"]


def test_evaluate_takes_a_prompt_directory_and_a_limit(place, foreword):
    found = foreword("evaluate", place.run / "artifact", "--task", place.task, "--limit", 1, "--no-untouched",
                     "--resamples", 0)
    assert found.code == 0
    assert found.out.splitlines()[0] == "letters, test, 1 records" and "untouched" not in found.out


def test_evaluate_cuts_sources_as_training_did(place, foreword, tmp_path):
    """By the run's own limit, else the task's: a source beyond the backbone's positions is no reason to fail."""
    task = place.task.read_text().replace("train.jsonl", "long.jsonl").replace("dev.jsonl", "long.jsonl")
    (tmp_path / "long.yaml").write_text(task + "max_source: 20\n")
    (tmp_path / "whole.yaml").write_text(task)
    rows = [{"word": letter * 600, "answer": "b"} for letter in "acegik"]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task, limit in (("task", "long.yaml", ()), ("run", "whole.yaml", ("data.max_source=9",))):
        run = tmp_path / name
        assert foreword("train", place.recipe, "--task", tmp_path / task, "--out", run, *limit).code == 0
        for source in ((run,), (run / "artifact", "--task", tmp_path / task)):
            found = foreword("evaluate", *source, "--split", "dev", "--resamples", 0)
            assert found.code == 0, found.err
    assert foreword("evaluate", place.run, "--task", tmp_path / "whole.yaml").code == 2


def test_a_gang_trains_each_member_as_alone(place, foreword, tmp_path):
    members = [{"run_dir": str(tmp_path / "one")}, {"run_dir": str(tmp_path / "two"), "prompt.length": 5, "seed": 1}]
    recipe = yaml.safe_load(place.recipe.read_text()) | {"gang": members}
    (tmp_path / "gang.yaml").write_text(yaml.safe_dump(recipe))
    found = foreword("train", "--gang", tmp_path / "gang.yaml")
    assert found.code == 0 and found.out.count("4 steps") == 2
    first, alone = fw.load_prompt(tmp_path / "one" / "artifact"), fw.load_prompt(place.run / "artifact")
    assert torch.allclose(first.table("decoder"), alone.table("decoder"), atol=1e-5)
    assert foreword("train", "--gang", tmp_path / "gang.yaml", "--seed", 3).code == 2


def test_fine_tuning_trains_every_weight_and_evaluates_beside_the_untouched_one(place, foreword, tmp_path):
    out = tmp_path / "tuned"
    assert foreword("train", place.recipe, "method=fine_tune", "optim.lr=1e-2", "--out", out).code == 0
    found = foreword("evaluate", out, "--split", "dev", "--resamples", 0)
    assert found.code == 0 and "fine_tune: " in found.out
    assert "(unchanged)" not in found.out  # the weights moved, and the forgetting check sees it


def test_generate_mixes_prompts_in_one_batch_and_equals_the_python_api(place, foreword):
    artifact = place.run / "artifact"
    found = foreword("generate", "ab", "cd", "--backbone", place.backbone, "--prompt", artifact, "--prompt", "none",
                     "--max-new-tokens", 5)
    assert found.code == 0
    backbone = fw.load_backbone(place.backbone)
    prompt = fw.load_prompt(artifact, backbone)
    expected = fw.generate(backbone, ["ab", "cd"], prompts=[prompt, None], max_new_tokens=5)
    assert found.out == "\n".join(expected) + "\n"


def test_generate_reads_and_writes_jsonl(place, foreword, tmp_path):
    rows = [{"text": "ab"}, {"text": "cd", "prompt": None}, {"text": "ef", "prompt": str(place.run / "artifact")}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = foreword("generate", "--input", tmp_path / "in.jsonl", "--prompt", place.run / "artifact", "--backbone",
                     place.backbone, "--out", tmp_path / "out.jsonl", "--max-new-tokens", 3)
    assert found.code == 0
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    artifact = str(place.run / "artifact")
    assert [row["prompt"] for row in written] == [artifact, None, artifact]
    assert [row["text"] for row in written] == ["ab", "cd", "ef"]


def test_doctor_examines_a_run_and_its_prompt(place, foreword):
    for source in (place.run, place.run / "artifact"):
        found = foreword("doctor", source, "--text", "ab cd")
        assert found.code in (0, 1) and found.out and not found.err


def test_convert_there_and_back_keeps_every_bit(place, foreword, tmp_path):
    assert foreword("convert", place.run / "artifact", tmp_path / "peft", "--to", "peft").code == 0
    assert {path.name for path in (tmp_path / "peft").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert foreword("convert", tmp_path / "peft", tmp_path / "ours", "--backbone", place.backbone).code == 0
    first, last = fw.load_prompt(place.run / "artifact"), fw.load_prompt(tmp_path / "ours")
    assert all((first.table(name) == last.table(name)).all() for name in first.tables)


def test_the_issue_example_runs_as_written(place):
    backbone = fw.load_backbone(place.backbone, dtype="float32")
    a, b = fw.load_prompt(place.run / "artifact"), fw.load_prompt(str(place.run / "artifact"))
    texts = fw.generate(backbone, ["ab", "cd", "ef"], prompts=[a, None, b], max_new_tokens=4)
    assert len(texts) == 3
    found = fw.logits(backbone, ["ab", "cdef"], prompts=[a, b])
    assert [one.shape[1] for one in found] == [99, 99] and len(found[1]) > len(found[0])
