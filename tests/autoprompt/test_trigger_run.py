"""The whole way: a recipe, the command line, resuming, the artefact, evaluation and generation."""

import json

import pytest
import torch
import yaml
from readers import SPECIAL, bert, save_bert, save_task
from toy import metrics, save_backbone

from foreword.artifact.directory import MANIFEST
from foreword.backbone import load_backbone
from foreword.baselines.autoprompt.masked import MaskedBackbone, is_masked, load_masked, wrap_masked
from foreword.baselines.autoprompt.reader import Reader
from foreword.baselines.autoprompt.trigger import load_trigger
from foreword.baselines.methods import stored_bytes
from foreword.baselines.saved import read_baseline
from foreword.cli import main
from foreword.config import build
from foreword.errors import ArtifactError, BackboneError, ConfigError, TrainingError
from foreword.evaluate.job import evaluate
from foreword.evaluate.subject import load_subjects, text_loss
from foreword.generate import generate
from foreword.tasks import get_task
from foreword.train.job import resume, train
from foreword.train.run_config import RunConfig
from foreword.train.trigger_run import TriggerRun

SEARCH = {"candidates": 3, "accumulation": 1, "rows": 6, "score": "loss", "labels": {"n": ["n"], "y": ["y"]}}


def tree(tmp_path, backbone, name="run", search=None, **changes):
    return {
        "task": str(tmp_path / "task" / "task.yaml"), "method": "autoprompt",
        "backbone": {"source": str(backbone), "device": "cpu"}, "run_dir": str(tmp_path / name),
        "autoprompt": {**SEARCH, **(search or {})}, "steps": 7, "dev": {"every": 2}, "checkpoint": {"every": 3},
        "track": [], **changes,
    }


@pytest.fixture(params=["gpt2", "t5", "bert"])
def saved(request, tmp_path):
    """A saved backbone of each kind, with the task beside it."""
    save_task(tmp_path / "task")
    folder = tmp_path / "backbone"
    return save_bert(folder) if request.param == "bert" else save_backbone(folder, request.param)


@pytest.fixture
def gpt2(tmp_path):
    save_task(tmp_path / "task")
    return save_backbone(tmp_path / "backbone", "gpt2")


def run(tmp_path, backbone, name="run", search=None, **changes):
    return train(build(RunConfig, tree(tmp_path, backbone, name, search, **changes)), progress=False)


def test_recipe_to_scores_on_the_command_line(saved, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree(tmp_path, saved)), encoding="utf-8")
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out and not (tmp_path / "run").exists()
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert "7 steps" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--out", str(tmp_path / "scores"), "--resamples", "5"]) == 0
    shown = capsys.readouterr().out
    assert "untouched: accuracy" in shown and "autoprompt: accuracy" in shown and "(unchanged)" in shown
    assert main(["evaluate", str(tmp_path / "run" / "artifact"), "--task", str(tmp_path / "task" / "task.yaml"),
                 "--out", str(tmp_path / "again"), "--resamples", "5"]) == 0
    first, second = ((tmp_path / name / "scores.json").read_bytes() for name in ("scores", "again"))
    assert first == second


def test_predictions_are_the_most_probable_labels(saved, tmp_path):
    done = run(tmp_path, saved)
    found = evaluate(done.run_dir, split="dev", resamples=0)
    subject = load_subjects(done.run_dir)[1]
    reader = Reader(subject.backbone, subject.trigger.labels)
    rows = subject.trigger.examples(subject.backbone, [r["source"] for r in found.predictions["autoprompt"]])
    for row, told in zip(rows, found.predictions["autoprompt"], strict=True):
        scores = reader.probabilities([row], subject.trigger.ids)[0]
        assert told["prediction"] == "ny"[int(scores.argmax())]
    right = [told["prediction"] == told["targets"][0] for told in found.predictions["autoprompt"]]
    assert found.scores["autoprompt"].metrics["accuracy"] == pytest.approx(sum(right) / len(right))


def test_what_a_search_took_ends_its_times(gpt2, tmp_path):
    done = run(tmp_path, gpt2, steps=3)
    rows = [json.loads(line) for line in (done.run_dir / "times.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[-1]["trained"] == 0 and 50e6 < rows[-1]["peak_bytes"] < 1e11
    assert rows[-1]["seconds"] >= rows[-2]["seconds"]


def test_the_artefact_holds_ids_words_and_text(saved, tmp_path):
    done = run(tmp_path, saved, steps=3)
    told = json.loads((done.artifact_dir / MANIFEST).read_text(encoding="utf-8"))
    content, backbone = told["content"], load_subjects(done.run_dir)[1].backbone
    assert told["method"] == "autoprompt" and len(content["ids"]) == 3
    assert content["words"] == [backbone.tokenizer.decode([index]) for index in content["ids"]]
    assert content["label_words"] == {"n": ["n"], "y": ["y"]}
    assert content["text"].startswith("{source}" + "".join(content["words"]))
    assert {"dev_loss", "best_step", "evaluations"} <= set(told["scores"])
    trigger = load_trigger(read_baseline(done.artifact_dir), backbone)
    (row,) = trigger.rows(backbone, ["ab"])
    assert any(row[i : i + 3] == trigger.ids for i in range(len(row)))
    assert (trigger.ids, trigger.labels) == (tuple(content["ids"]), {k: tuple(v) for k, v in content["labels"].items()})


def assert_same(one, other):
    for name in ("metrics.jsonl", f"artifact/{MANIFEST}"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_stopped_run_goes_on_to_the_same_bytes(saved, tmp_path, monkeypatch):
    search = {"labels": None, "label_search": {"words": 2, "epochs": 3}}
    whole = run(tmp_path, saved, "whole", search).run_dir
    config = build(RunConfig, tree(tmp_path, saved, "cut", search))
    step = TriggerRun.step

    def dying(self):
        if self.iteration == 5:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(TriggerRun, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=False)
    assert len(metrics(tmp_path / "cut")) >= 5
    monkeypatch.undo()
    assert resume(tmp_path / "cut", progress=False).steps == 7
    assert_same(tmp_path / "cut", whole)


def test_the_same_config_gives_the_same_bytes_and_another_seed_others(gpt2, tmp_path):
    one, two = run(tmp_path, gpt2, "one").run_dir, run(tmp_path, gpt2, "two").run_dir
    assert_same(one, two)
    other = run(tmp_path, gpt2, "other", seed=1).run_dir
    assert (one / "metrics.jsonl").read_bytes() != (other / "metrics.jsonl").read_bytes()


def test_the_best_trigger_on_dev_is_the_one_that_is_kept(gpt2, tmp_path):
    done = run(tmp_path, gpt2, dev={"every": 1}, steps=12)
    rows = [row for row in metrics(done.run_dir) if "dev_loss" in row]
    best = min(rows, key=lambda row: row["dev_loss"])
    assert (done.best_dev, done.best_step) == (best["dev_loss"], best["step"])
    accepted = [row["step"] for row in metrics(done.run_dir) if row.get("accepted")]
    assert [row["step"] for row in rows] == [0, *accepted]  # where nothing changed, nothing is evaluated
    subject = load_subjects(done.run_dir)[1]
    score = evaluate(done.run_dir, split="dev", resamples=0).scores["autoprompt"].metrics["accuracy"]
    assert score == pytest.approx(best["dev_accuracy"])
    assert subject.trigger.ids != (0, 0, 0)


def test_a_search_stops_when_nothing_is_replaced(gpt2, tmp_path):
    done = run(tmp_path, gpt2, "stalled", {"candidates": 1, "stall": 2}, steps=60, dev={"every": 0})
    flips = [row["accepted"] for row in metrics(done.run_dir)]
    assert done.steps == len(flips) < 60 and flips[-2:] == [0, 0]
    assert all(flips[i] or flips[i + 1] for i in range(len(flips) - 2))
    assert done.best_dev is None
    done = run(tmp_path, gpt2, "patient", steps=60, dev={"every": 1, "patience": 1})
    dev = [row["dev_loss"] for row in metrics(done.run_dir) if "dev_loss" in row]
    assert done.steps < 60 and dev[-1] >= min(dev[:-1]) and dev[:-1] == sorted(dev[:-1], reverse=True)


def test_written_targets_and_the_generation_that_goes_with_them(gpt2, tmp_path):
    save_task(tmp_path / "task", ("no", "yes"))
    done = run(tmp_path, gpt2, search={"labels": None, "score": "loss"})
    backbone = load_backbone(gpt2)
    trigger = load_trigger(read_baseline(done.artifact_dir), backbone)
    assert stored_bytes(done.artifact_dir) == len(trigger.text(backbone.tokenizer).encode())  # no label words here
    (made,) = generate(backbone, ["ab"], trigger, max_new_tokens=3)
    (row,) = trigger.rows(backbone, ["ab"])
    by_hand = list(row)
    for _ in range(3):
        by_hand.append(int(backbone.model(torch.tensor([by_hand])).logits[0, -1].argmax()))
    assert made == backbone.tokenizer.decode(by_hand[len(row) :], skip_special_tokens=True)
    found = evaluate(done.run_dir, split="dev", resamples=0)
    sources = [told["source"] for told in found.predictions["autoprompt"]]
    wanted = generate(backbone, sources, trigger, max_new_tokens=3, bad_words=["\n", "\n\n"])
    assert [told["prediction"] for told in found.predictions["autoprompt"]] == [text.strip() for text in wanted]
    # The letters of the labels are not among the trigger words, nor are they ever tried.
    tried = {row["candidate"] for row in metrics(done.run_dir) if "candidate" in row}
    assert tried and not tried & {*backbone.tokenizer("noyes", add_special_tokens=False).input_ids}


def test_the_command_line_generates_with_words_beside_none(gpt2, tmp_path, capsys):
    done = run(tmp_path, gpt2, steps=2)
    given = ["--prompt", str(done.artifact_dir), "--prompt", "none"]
    assert main(["generate", "--backbone", str(gpt2), *given, "--max-new-tokens", "4", "ab", "ab"]) == 0
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    backbone = load_backbone(gpt2)
    trigger = load_trigger(read_baseline(done.artifact_dir), backbone)
    assert "\n".join(lines) == "\n".join(generate(backbone, ["ab", "ab"], [trigger, None], max_new_tokens=4))


def test_a_masked_model_is_known_by_its_config_and_left_as_it_was(tmp_path):
    folder = save_bert(tmp_path / "bert")
    assert is_masked(str(folder)) and not is_masked("foreword-decoder-6m") and not is_masked(str(tmp_path))
    assert not is_masked(str(save_backbone(tmp_path / "gpt2", "gpt2")))
    loaded = load_masked(folder)
    assert isinstance(loaded, MaskedBackbone) and loaded.weight_files
    assert loaded.fingerprint["config"] == load_masked(folder).fingerprint["config"]
    assert loaded.state_digest() == bert().state_digest()
    assert text_loss(loaded, ["ab cd ef gh", "one two three"]) > 0
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_masked(tmp_path / "none")
    tokenizer = load_masked(folder).tokenizer
    tokenizer.mask_token = None
    with pytest.raises(BackboneError, match="no mask token"):
        wrap_masked(loaded.model, tokenizer, source="x")
    assert SPECIAL[4] == "[MASK]"


def test_a_masked_model_answers_words_where_there_are_no_labels(tmp_path):
    folder = save_bert(tmp_path / "bert")
    save_task(tmp_path / "task", labels=False)
    done = run(tmp_path, folder, search={"labels": None, "score": None}, steps=3)
    found = load_subjects(done.run_dir)[1].outputs(["ab", "cde"], get_task(str(tmp_path / "task/task.yaml")).generation)
    assert [len(text) for text in found] == [1, 1]
    tried = {row["candidate"] for row in metrics(done.run_dir) if "candidate" in row}
    assert not tried & set(bert().tokenizer("ny", add_special_tokens=False).input_ids)  # gold objects are left out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"lr": 0.1}}, "optim is set, but method 'autoprompt' does not read it"),
        ({"batch": {"rows": 3}}, "batch is set"),
        ({"steps": None, "epochs": 2}, "epochs is set"),
        ({"data": {"words": "hello"}}, "autoprompt.template"),
        ({"data": {"format": "seq2seq"}}, "does not fit"),
        ({"autoprompt": {"labels": {"n": ["nn"], "y": ["y"]}}}, "'nn' is not one token"),
        ({"autoprompt": {"labels": {"n": ["n"], "z": ["z"]}}}, "no label of the task"),
        ({"autoprompt": {"template": "{source}"}}, "no trigger word"),
        ({"dev": {"every": 1, "metric": "bleu"}}, "dev.metric = 'bleu'"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_left_behind(gpt2, tmp_path, changes, message):
    config = build(RunConfig, {**tree(tmp_path, gpt2), **changes})
    with pytest.raises(ConfigError, match=message):
        train(config, progress=False)
    assert not (tmp_path / "run").exists()


def test_changed_data_and_damaged_artefacts_are_refused(gpt2, tmp_path):
    done = run(tmp_path, gpt2, steps=3)
    other = load_backbone(save_backbone(tmp_path / "other", "llama"))
    with pytest.raises(ArtifactError, match="another backbone"):
        load_subjects(done.run_dir, other)
    path = done.artifact_dir / MANIFEST
    told = json.loads(path.read_text(encoding="utf-8"))
    for ids in ([5, 6], [5, 6, 100000], "x"):
        told["content"]["ids"] = ids
        path.write_text(json.dumps(told), encoding="utf-8")
        with pytest.raises(ArtifactError, match="ids"):
            load_subjects(done.run_dir)
    (tmp_path / "task" / "train.jsonl").write_text('{"s": "a", "t": "n"}\n{"s": "b", "t": "y"}\n', encoding="utf-8")
    with pytest.raises(TrainingError, match="data is not what this run was started with"):
        resume(done.run_dir, progress=False)
