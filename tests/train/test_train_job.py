"""The job: what it writes, what it repeats, when it stops, what it refuses."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import torch
from backbones import FAMILIES, make
from safetensors.torch import load_file
from toy import EXAMPLES, metrics, run_config

from foreword.artifact import load_prompt
from foreword.config import build, load_yaml
from foreword.data.examples import Example
from foreword.data.records import Record
from foreword.errors import BackboneError, ConfigError, DataError, TrainingError
from foreword.prompts.spec import InitSpec, PromptSpec
from foreword.train.job import resume, train, train_prompt
from foreword.train.run_config import BackboneConfig, DevConfig, Recipe, RunConfig, TrainBatch, load_config, resolve


@pytest.fixture
def config(saved_llama, toy_task, tmp_path):
    return lambda name="run", **changes: run_config(saved_llama, toy_task, tmp_path / name, **changes)


def test_a_run_leaves_everything_in_its_directory(config):
    result = train(config(track=["tensorboard"]), progress=False)
    names = {path.name for path in result.run_dir.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "times.jsonl", "checkpoints", "artifact", "tensorboard"}
    rows = metrics(result.run_dir)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert set(steps[0]) == {"step", "loss", "lr", "tokens", "grad_norm"}
    assert [row["step"] for row in rows if "dev_loss" in row] == [4, 8, 12]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert result.final_loss == steps[-1]["loss"]
    assert sorted(p.name for p in (result.run_dir / "checkpoints").glob("step-*")) == ["step-00000009", "step-00000012"]
    assert build(RunConfig, load_yaml(result.run_dir / "config.yaml")) == resolve(config(track=["tensorboard"]))
    assert [json.loads(line)["step"] for line in (result.run_dir / "times.jsonl").read_text().splitlines()][-1] == 12


def test_the_artefact_is_the_trained_prompt(config):
    result = train(config(), progress=False)
    loaded = load_prompt(result.artifact_dir)
    assert loaded.format == "paper"
    assert torch.equal(loaded.table("decoder"), result.prompt.table("decoder"))
    assert loaded.meta["recipe"]["steps"] == 12
    assert "run_dir" not in loaded.meta["recipe"]
    assert loaded.meta["scores"]["dev_loss"] == result.best_dev


def test_same_config_and_seed_give_the_same_bytes(config):
    one, two = train(config("one"), progress=False), train(config("two"), progress=False)
    other = train(config("other", seed=1), progress=False)
    assert (one.run_dir / "metrics.jsonl").read_bytes() == (two.run_dir / "metrics.jsonl").read_bytes()
    assert (one.run_dir / "metrics.jsonl").read_bytes() != (other.run_dir / "metrics.jsonl").read_bytes()
    for path in one.artifact_dir.iterdir():
        assert path.read_bytes() == (two.artifact_dir / path.name).read_bytes(), path.name


def test_log_and_checkpoint_intervals_change_no_figure(config):
    one = train(config("one"), progress=False)
    two = train(config("two", log_every=5, checkpoint={"every": 7}), progress=False)
    assert metrics(one.run_dir) == metrics(two.run_dir)


def test_the_best_step_on_dev_is_kept_and_patience_ends_the_run(config):
    scores = {2: 0.1, 4: 0.5, 6: 0.4, 8: 0.3, 10: 0.2}
    seen = {}

    def evaluator(backbone, prompt, step):
        seen[step] = prompt.table("decoder").clone()
        assert not prompt.training
        return {"quality": scores[step]}

    dev = {"every": 2, "metric": "quality", "patience": 2}
    result = train(config(dev=dev), evaluator=evaluator, progress=False)
    assert (result.best_step, result.best_dev, result.steps) == (4, 0.5, 8)
    assert torch.equal(result.prompt.table("decoder"), seen[4])
    assert torch.equal(load_prompt(result.artifact_dir).table("decoder"), seen[4])
    assert not torch.equal(seen[4], seen[8])
    assert [row["dev_quality"] for row in metrics(result.run_dir) if "dev_quality" in row] == [0.1, 0.5, 0.4, 0.3]


def test_an_evaluator_that_samples_changes_no_training_figure(config):
    def evaluator(backbone, prompt, step):
        return {"noise": torch.rand(()).item()}

    for method in ("prompt", "fine_tune"):
        quiet = train(config(f"{method}-quiet", method=method), progress=False)
        noisy = train(config(f"{method}-noisy", method=method), evaluator=evaluator, progress=False)
        losses = [[row["loss"] for row in metrics(r.run_dir) if "loss" in row] for r in (quiet, noisy)]
        assert losses[0] == losses[1]


def test_dev_loss_is_the_mean_over_all_target_tokens(config):
    """Recomputed from the saved prompt, row by row."""
    from foreword.backbone import load_backbone
    from foreword.data.examples import get_format, tokenise
    from foreword.prompts.batch import Row
    from foreword.tasks import get_task
    from foreword.train.loss import target_loss

    wanted = config()
    result = train(wanted, progress=False)
    backbone = load_backbone(wanted.backbone.source, device="cpu")
    rows = tokenise(get_task(wanted.task).load("dev"), backbone.tokenizer, get_format("paper")).examples
    losses = [target_loss(backbone, [Row(e.source_ids, (e.target_ids,))], [result.prompt]) for e in rows]
    mean = sum(one.sum.item() for one in losses) / sum(one.num_tokens for one in losses)
    assert result.best_dev == pytest.approx(mean, rel=1e-6)


def test_a_finished_run_resumes_to_itself(config):
    result = train(config(), progress=False)
    before = {path.name: path.read_bytes() for path in result.artifact_dir.iterdir()}
    rows = (result.run_dir / "metrics.jsonl").read_bytes()
    again = resume(result.run_dir, progress=False)
    assert again.steps == 12
    assert {path.name: path.read_bytes() for path in result.artifact_dir.iterdir()} == before
    assert (result.run_dir / "metrics.jsonl").read_bytes() == rows


def test_a_changed_config_on_resume_is_named(config):
    result = train(config(), progress=False)
    with pytest.raises(ConfigError, match=r"optim.lr was 0.005 and is now 0.001"):
        resume(result.run_dir, config(optim={"lr": 1e-3}))
    with pytest.raises(ConfigError, match=r"holds no config\.yaml"):
        resume(result.run_dir / "nowhere")


def test_a_directory_that_holds_a_run_is_refused(config):
    train(config(steps=1), progress=False)
    with pytest.raises(ConfigError, match="already holds a run; go on with --resume"):
        train(config(steps=1))


def test_the_config_is_written_before_the_backbone_loads(config, monkeypatch, tmp_path):
    job = importlib.import_module("foreword.train.job")
    written, load = [], job.load_backbone

    def spy(*args, **kwargs):
        written.append(load_config(tmp_path / "run" / "config.yaml"))
        return load(*args, **kwargs)

    monkeypatch.setattr(job, "load_backbone", spy)
    train(config(), progress=False)
    assert written == [resolve(config())]


def test_a_run_that_took_no_step_leaves_its_directory_free(config, tmp_path):
    broken = dataclasses.replace(config(), backbone=BackboneConfig(source=str(tmp_path / "missing")))
    with pytest.raises(BackboneError):
        train(broken, progress=False)
    assert train(config(), progress=False).steps == 12


def poison(at):
    """An evaluator that puts a NaN into the prompt at one step, so that the next one fails."""

    def evaluator(backbone, prompt, step):
        if step == at:
            prompt.tables["decoder"].inputs.data[0, 0] = float("nan")
        return {}

    return evaluator


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_good_checkpoints(config, tmp_path):
    settings = {"dev": {"every": 4}, "checkpoint": {"every": 3, "keep": 9}, "log_every": 10}
    with pytest.raises(
        TrainingError, match=r"^step 5: loss = nan .* last good checkpoint: step-00000003; lower optim.lr"
    ):
        train(config(**settings), evaluator=poison(4), progress=False)
    (path,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert all(torch.isfinite(t).all() for t in load_file(path / "tensors.safetensors").values())
    assert [row["step"] for row in metrics(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4]
    whole = train(config("whole", **settings), evaluator=poison(0), progress=False)
    assert resume(tmp_path / "run", evaluator=poison(0), progress=False).final_loss == whole.final_loss


def test_a_loss_that_is_not_finite_names_its_rows_only():
    backbone = make("llama")
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[27] = float("nan")
    with pytest.raises(TrainingError, match=r"step 1: .* on rows d;"):
        train_prompt(
            backbone,
            EXAMPLES,
            PromptSpec(length=4, init=InitSpec("normal", std=0.1)),
            steps=3,
            batch=TrainBatch(rows=8),
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_training_leaves_the_backbone_as_it_was(family):
    backbone = make(family)
    before = backbone.state_digest()
    result = train_prompt(
        backbone, EXAMPLES, PromptSpec(length=4), steps=6, dev=EXAMPLES[:3], recipe=Recipe(dev=DevConfig(every=2))
    )
    assert backbone.state_digest() == before
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    assert result.best_dev is not None
    assert result.run_dir is None


def test_train_prompt_learns_and_takes_records():
    backbone = make("llama")
    records = [Record("ab", ("xyz",), "1"), Record("cd", ("zz", "yy"), "2")]
    result = train_prompt(backbone, records, PromptSpec(kind="prompt", length=4), steps=40, seed=3)
    assert result.prompt.spec.kind == "prompt"
    assert result.prompt.format == "paper"
    first = train_prompt(backbone, records, PromptSpec(kind="prompt", length=4), steps=1, seed=3)
    assert result.final_loss < first.final_loss - 1
    with pytest.raises(DataError, match="empty target"):
        train_prompt(backbone, [Record("ab", (" ",), "1")], steps=1)
    with pytest.raises(DataError):
        train_prompt(backbone, [], steps=1)


def test_defaults_are_resolved_and_a_missing_backbone_is_named(monkeypatch):
    config = resolve(RunConfig(task="e2e", backbone=BackboneConfig(source="somewhere")))
    assert (config.optim.lr, config.epochs, config.steps) == (5e-3, 5.0, None)
    assert config.run_dir == "runs/e2e-prefix10-seed0"
    monkeypatch.setattr(importlib.import_module("foreword.train.run_config"), "bundled_backbones", dict)
    with pytest.raises(ConfigError, match=r"backbone\.source is not given"):
        resolve(RunConfig(task="e2e"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: e2e\nstep: 3", "unknown field 'step'; did you mean 'steps'"),
        ("steps: 3", "missing field 'task'"),
        ("task: e2e\nsteps: 3\nepochs: 2", "give one of them"),
        ("task: e2e\nsteps: 0", "steps = 0 must be positive"),
        ("task: e2e\nmethod: lara", "method = 'lara'.*did you mean 'lora'"),
        ("task: e2e\ndev: {patience: 0}", "dev.patience"),
        ("task: e2e\ncheckpoint: {keep: 0}", "keep = 0"),
        ("task: e2e\nmethod: fine_tune\nshard: true", "shard"),
    ],
)
def test_bad_recipes_are_one_line(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / "recipe.yaml")
    assert "\n" not in str(caught.value)


def test_an_unknown_dev_metric_names_the_nearest(config):
    with pytest.raises(ConfigError, match=r"dev\.metric = 'los' is not among the scores; did you mean 'loss'"):
        train(config(dev={"every": 2, "metric": "los"}), progress=False)


def test_dev_evaluations_that_cannot_decide_are_refused_before_the_first_step(config, monkeypatch):
    """`foreword train` hands in no evaluator, so another metric than the loss would end the run at its first look."""
    job = importlib.import_module("foreword.train.job")
    monkeypatch.setattr(job, "train_step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(ConfigError, match=r"dev\.metric = 'bleu' is not among the scores"):
        train(config(dev={"every": 12, "metric": "bleu"}), progress=False)
    assert not Path(config().run_dir).exists()
    with pytest.raises(ConfigError, match="there are no dev rows"):
        train_prompt(make("llama"), EXAMPLES, PromptSpec(length=2), recipe=Recipe(dev=DevConfig(every=2)), steps=4)


@pytest.mark.parametrize(("family", "kind", "fits"), [
    ("llama", "prefix", 500), ("llama", "prompt", 500), ("bart", "prefix", 510), ("bart", "prompt", 502)
])  # fmt: skip
def test_a_row_that_cannot_fit_is_named_before_the_first_step(family, kind, fits, monkeypatch):
    """512 positions, ten virtual tokens, a target of two (on a decoder its EOS is only predicted)."""
    backbone, spec = make(family), PromptSpec(kind=kind, length=10)
    fits += 1 if family == "llama" else 2 if kind == "prefix" else 0
    good, long = (Example((9,) * length, (20, 2), f"of {length}") for length in (fits, fits + 1))
    train_prompt(backbone, [good], spec, steps=1)
    job = importlib.import_module("foreword.train.job")
    monkeypatch.setattr(job, "train_step", lambda *_: pytest.fail("a step was taken"))
    for rows, dev, where in (([*EXAMPLES, long], (), "train"), (EXAMPLES, [long], "dev")):
        said = rf"record of {fits + 1} of {where}: .* take 513 positions.*data\.max_source"
        with pytest.raises(DataError, match=said):
            train_prompt(backbone, rows, spec, dev=dev, steps=1)


@pytest.mark.parametrize("state", ["{}", "[]", '{"step": 12, "metrics_bytes": 0}'])
def test_a_checkpoint_with_half_a_state_is_damaged(config, state):
    run_dir = train(config(), progress=False).run_dir
    (run_dir / "checkpoints" / "step-00000012" / "state.json").write_text(state)
    with pytest.raises(TrainingError, match=r"step-00000012' is damaged .*delete it to go on from an older one"):
        resume(run_dir, progress=False)


@pytest.mark.parametrize("changes", [
    {"seed": -1}, {"seed": 2**63}, {"data": {"max_source": 0}}, {"data": {"max_target": 1}}, {"data": {"limit": 0}},
    {"optim": {"eps": -1.0}}, {"optim": {"lr": float("inf")}}, {"optim": {"update_clip": 0.0}},
    {"prompt": {"layers": []}}, {"epochs": float("inf"), "steps": None},
], ids=str)  # fmt: skip
def test_values_that_cannot_work_are_refused_at_once(config, changes):
    (name, fields), *_ = changes.items()
    field = next(iter(fields)) if isinstance(fields, dict) else name
    with pytest.raises(ConfigError, match=field) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)
