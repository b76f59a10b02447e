"""A gang: each member equals its own run."""

import dataclasses
import json

import pytest
import torch
from backbones import make
from toy import EXAMPLES, metrics, recipe, run_config, save_task

from foreword.artifact import load_prompt
from foreword.config import build, to_dict
from foreword.errors import ConfigError
from foreword.prompts.spec import InitSpec, PromptSpec
from foreword.train.dev import Evaluator
from foreword.train.gang import load_gang, resume_gang, train_gang
from foreword.train.job import run_all, train
from foreword.train.optim import OptimConfig, ScheduleConfig
from foreword.train.parallel import World
from foreword.train.run import Run, TrainData
from foreword.train.run_config import RunConfig, TrainBatch

MEMBERS = {
    "mlp": {},
    "seed": {"seed": 5},
    "long": {"prompt": {"length": 9, "dropout": 0.2}, "optim": {"lr": 1e-2}, "steps": 8},
    "prompt": {"prompt": {"kind": "prompt", "length": 3}, "optim": {"name": "adafactor", "lr": 0.05}},
    "infix": {"prompt": {"kind": "infix", "length": 2}, "schedule": {"name": "cosine", "warmup": 3}},
    "sums": {"loss": "sequence_sum", "batch": {"rows": 2, "accumulation": 3}, "optim": {"clip": 0.1}},
}


@pytest.fixture
def members(saved_llama, toy_task, tmp_path):
    def make_all(folder, other_task=None):
        configs = [run_config(saved_llama, toy_task, tmp_path / folder / name, **c) for name, c in MEMBERS.items()]
        last = dataclasses.replace(configs[-1], task=str(other_task or toy_task))
        return [*configs[:-1], last]

    return make_all


def test_every_member_equals_its_own_run(members, tmp_path):
    other = save_task(tmp_path / "other", rows=23)
    together = train_gang(members("gang", other), progress=False)
    for config, one in zip(members("alone", other), together, strict=True):
        alone = train(config, progress=False)
        ours, theirs = metrics(one.run_dir), metrics(alone.run_dir)
        assert [row["step"] for row in ours] == [row["step"] for row in theirs]
        for mine, other_row in zip(ours, theirs, strict=True):
            assert mine == pytest.approx(other_row, rel=1e-5, abs=1e-5)
        assert one.steps == alone.steps
        for name, value in alone.prompt.state_dict().items():
            assert (one.prompt.state_dict()[name] - value).abs().max() < 1e-3, name  # Adam magnifies rounding
        assert load_prompt(one.artifact_dir).spec.kind == config.prompt.kind


@pytest.mark.parametrize("family", ["gpt2", "mistral", "t5", "bart"])
def test_the_first_step_is_the_same_on_other_families(family):
    """One step, so that nothing but rounding differs: the losses of three members, alone and together."""
    backbone = make(family)
    recipes = [
        recipe(steps=1, prompt=PromptSpec(length=4, init=InitSpec("normal")), seed=1),
        recipe(steps=1, prompt=PromptSpec(kind="prompt", length=6), optim=OptimConfig("adafactor"), seed=2),
        recipe(steps=1, prompt=PromptSpec(length=2), schedule=ScheduleConfig("constant"), batch=TrainBatch(rows=3)),
    ]
    data = TrainData(EXAMPLES)

    def losses(*chosen):
        return [
            r.final_loss for r in run_all(backbone, [Run(c, backbone, data, World()) for c in chosen], World(), False)
        ]

    assert losses(*recipes) == pytest.approx([losses(one)[0] for one in recipes], rel=1e-5)


def test_a_gang_resumes_from_each_members_own_checkpoint(members):
    whole = train_gang(members("whole"), progress=False)
    calls = [0]

    def fails_late(backbone, prompt, step) -> dict[str, float]:
        calls[0] += 1
        if calls[0] > len(MEMBERS) + 2:  # in the second evaluation, when some members have evaluated and some not
            raise KeyboardInterrupt
        return {}

    evaluator: Evaluator = fails_late
    configs = members("cut")
    with pytest.raises(KeyboardInterrupt):
        train_gang(configs, evaluator=evaluator, progress=False)
    again = resume_gang([config.run_dir for config in configs], progress=False)
    for one, other in zip(again, whole, strict=True):
        assert metrics(one.run_dir) == metrics(other.run_dir)
        for name, value in other.prompt.state_dict().items():
            assert torch.equal(one.prompt.state_dict()[name], value)


def test_members_come_from_one_file(saved_llama, toy_task, tmp_path):
    tree = {
        "task": str(toy_task),
        "backbone": {"source": str(saved_llama)},
        "steps": 2,
        "gang": [
            {"seed": 1},
            {"prompt.length": 7, "optim.lr": 1e-5, "dev.patience": None},
            {"prompt.init.text": "a: b"},
        ],
    }
    (tmp_path / "gang.yaml").write_text(json.dumps(tree))
    one, two, three = load_gang(tmp_path / "gang.yaml")
    assert (one.seed, one.prompt.length) == (1, 10)
    assert (two.seed, two.prompt.length, two.optim.lr, two.dev.patience) == (0, 7, 1e-5, None)
    assert three.prompt.init.text == "a: b"
    assert [c.steps for c in (one, two, three)] == [2, 2, 2]
    (tmp_path / "none.yaml").write_text(json.dumps({"task": "e2e"}))
    with pytest.raises(ConfigError, match="no list 'gang'"):
        load_gang(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text(json.dumps({"task": "e2e", "gang": [{"sed": 1}]}))
    with pytest.raises(ConfigError, match="unknown field 'sed'; did you mean 'seed'"):
        load_gang(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "fine_tune"}, "gang member 1: method"),
        ({"backbone": {"source": "elsewhere"}}, "gang member 1: backbone.source was .* and is now 'elsewhere'"),
        ({}, "gang member 1: run_dir"),
    ],
)
def test_members_that_cannot_share_a_model_are_named(saved_llama, toy_task, tmp_path, changes, message):
    one = run_config(saved_llama, toy_task, tmp_path / "one")
    tree = {"run_dir": str(tmp_path / ("two" if changes else "one")), **changes}
    two = build(RunConfig, {**to_dict(one), **tree})
    with pytest.raises(ConfigError, match=message):
        train_gang([one, two])
    with pytest.raises(ConfigError, match="gang is empty"):
        train_gang([])
