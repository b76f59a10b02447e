"""Transfer across tasks: zero-shot matrices, what curves say about steps saved, starts from other prompts."""

import json
import math

import pytest
import torch
from toy import drawn_prompt, run_config, save_backbone, save_task

from foreword.artifact import load_prompt, save_prompt
from foreword.backbone import load_backbone
from foreword.compose.library import mix_prompts
from foreword.compose.transfer import (
    UNTOUCHED,
    Curve,
    SpeedUp,
    TransferMatrix,
    ZeroShot,
    read_curve,
    speed_up,
    zero_shot,
    zero_shot_matrix,
)
from foreword.data.records import Record
from foreword.errors import ConfigError, DataError
from foreword.prompts.batch import Row
from foreword.tasks import GenerationLimits, Task
from foreword.train import loss as losses
from foreword.train.job import train


def toy_task(name, records):
    return Task(name, lambda split: list(records), ("exact_match",), GenerationLimits(max_new_tokens=3))


ONE = [Record("abc", ("xy",), "1"), Record("bd", ("x",), "2"), Record("ca", ("yx",), "3")]
TWO = [Record("12", ("34",), "1"), Record("3", ("5",), "2")]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_zero_shot_loss_is_the_training_loss_of_the_records(backbone_of, family):
    backbone = backbone_of(family)
    prompt = drawn_prompt(backbone, kind="prompt", dropout=0.5).train()
    found = zero_shot(backbone, prompt, toy_task("one", ONE), ONE)
    from foreword.data.examples import get_format, tokenise

    form = get_format(None, backbone.is_encoder_decoder)
    rows = [Row(e.source_ids, (e.target_ids,), form.tail) for e in tokenise(ONE, backbone.tokenizer, form).examples]
    assert prompt.training
    loss = losses.target_loss(backbone, rows, [prompt.eval()] * 3)
    assert found == ZeroShot(pytest.approx(float(loss.sum.detach()) / loss.num_tokens, rel=1e-5))


def test_a_prompt_is_scored_in_the_format_that_it_learned(backbone_of):
    backbone = backbone_of("llama")
    from foreword.data.examples import get_format, tokenise

    prompt = drawn_prompt(backbone)
    found = {}
    for name in ("paper", "plain"):
        prompt.format = name
        form = get_format(name, False)
        rows = [Row(e.source_ids, (e.target_ids,), form.tail) for e in tokenise(ONE, backbone.tokenizer, form).examples]
        loss = losses.target_loss(backbone, rows, [prompt.eval()] * 3)
        found[name] = zero_shot(backbone, prompt, toy_task("one", ONE), ONE).loss
        assert found[name] == pytest.approx(float(loss.sum.detach()) / loss.num_tokens, rel=1e-5)
    assert abs(found["paper"] - found["plain"]) > 1e-3


def test_counts_and_names_that_would_be_misread_are_refused(backbone_of):
    backbone = backbone_of("llama")
    prompt, task = drawn_prompt(backbone), toy_task("one", ONE)
    with pytest.raises(ConfigError, match="generated = -1 must not be negative"):
        zero_shot(backbone, prompt, task, ONE, generated=-1)
    with pytest.raises(ConfigError, match="'untouched', which stands for no prompt"):
        zero_shot_matrix(backbone, {UNTOUCHED: prompt}, {UNTOUCHED: task})
    with pytest.raises(ConfigError, match="seed"):
        zero_shot_matrix(backbone, {"one": prompt}, {"one": task}, limit=2, seed=-1)


def test_a_score_is_of_what_the_prompt_makes_the_model_write(backbone_of):
    backbone = backbone_of("llama")
    prompt = drawn_prompt(backbone)
    written = zero_shot(backbone, prompt, toy_task("one", ONE), ONE, generated=None)
    assert written.metric == "EM" and written.score == 0.0
    from foreword.evaluate.subject import Subject

    outputs = Subject("s", backbone, prompt, None).outputs(["abc", "bd", "ca"], GenerationLimits(max_new_tokens=3))
    told = [Record(r.source, (text,), r.id) for r, text in zip(ONE, outputs, strict=True) if text]
    assert told and zero_shot(backbone, prompt, toy_task("one", told), told, generated=None).score == 1.0


def test_the_matrix_has_every_source_on_every_target_and_survives_json(backbone_of):
    backbone = backbone_of("llama")
    prompts = {name: drawn_prompt(backbone, seed, kind="prompt") for seed, name in enumerate(("one", "two"))}
    tasks = {"one": toy_task("one", ONE), "two": toy_task("two", TWO)}
    matrix = zero_shot_matrix(backbone, prompts, tasks, split="dev")
    assert matrix.sources == ("one", "two", UNTOUCHED) and matrix.targets == ("one", "two")
    assert matrix.cells["two"]["one"] == zero_shot(backbone, prompts["two"], tasks["one"], ONE)
    assert matrix.cells[UNTOUCHED]["one"] == zero_shot(backbone, None, tasks["one"], ONE)
    assert matrix.losses().shape == (2, 2)
    assert TransferMatrix.from_dict(json.loads(json.dumps(matrix.to_dict()))) == matrix


def losses_matrix(own, other, floor):
    cells = {
        "a": {"a": ZeroShot(own), "b": ZeroShot(other)},
        "b": {"a": ZeroShot(other), "b": ZeroShot(own)},
        UNTOUCHED: {"a": ZeroShot(floor), "b": ZeroShot(floor)},
    }
    return TransferMatrix(("a", "b", UNTOUCHED), ("a", "b"), cells)


def test_relative_transfer_is_the_share_of_the_own_prompts_gain():
    relative = losses_matrix(own=1.0, other=2.5, floor=3.0).relative()
    torch.testing.assert_close(relative, torch.tensor([[1.0, 0.25], [0.25, 1.0]], dtype=torch.float64))
    assert float(losses_matrix(1.0, 4.0, 3.0).relative()[0, 1]) == pytest.approx(-0.5)
    assert torch.isnan(losses_matrix(3.5, 3.0, 3.0).relative()).all()
    with pytest.raises(ConfigError, match="must be the targets"):
        TransferMatrix(("b", "a", UNTOUCHED), ("a", "b"), {}).relative()


LOSS = Curve((0, 10, 20, 40), (5.0, 3.0, 2.0, 1.0))


def test_steps_to_a_goal_are_interpolated():
    assert LOSS.steps_to(5.0) == 0 and LOSS.steps_to(6.0) == 0
    assert LOSS.steps_to(4.0) == pytest.approx(5)
    assert LOSS.steps_to(1.5) == pytest.approx(30)
    assert LOSS.steps_to(1.0) == 40
    assert LOSS.steps_to(0.9) == math.inf
    accuracy = Curve((0, 10, 20), (0.5, 0.7, 0.6), lower_is_better=False)
    assert accuracy.best == 0.7 and accuracy.steps_to(0.6) == pytest.approx(5) and accuracy.steps_to(0.8) == math.inf


def test_speed_up_by_hand():
    # the plain run has made three quarters of its progress (loss 2) after 20 steps
    started = Curve((0, 10, 20, 40), (3.0, 2.0, 1.5, 1.0))
    found = speed_up(LOSS, started, share=0.75)
    # the started one is as good (loss 2) after 10, and at three quarters of its own (1.5) after 20
    assert found == SpeedUp(convergence=1.0, comparable=pytest.approx(2.0), steps_saved=pytest.approx(10.0))
    worse = speed_up(LOSS, Curve((0, 40), (9.0, 4.0)), share=0.75)
    assert worse.comparable == 0.0 and worse.steps_saved == -math.inf
    there = speed_up(LOSS, Curve((0, 40), (1.0, 0.5)), share=0.75)
    assert there.comparable == math.inf and there.steps_saved == pytest.approx(20)
    assert speed_up(LOSS, LOSS).comparable == pytest.approx(1.0)


def test_a_run_started_from_a_mixture_goes_on_from_it_and_has_a_curve(tmp_path):
    source, task = save_backbone(tmp_path / "model"), save_task(tmp_path / "task")
    backbone = load_backbone(source)
    mixed = mix_prompts([drawn_prompt(backbone, seed, kind="prompt") for seed in range(2)], [0.5, 0.5])
    save_prompt(mixed, tmp_path / "mixed", backbone)
    prompt = {"kind": "prompt", "length": 4, "init": {"name": "artifact", "artifact": str(tmp_path / "mixed")}}
    config = run_config(source, task, tmp_path / "run", prompt=prompt, optim={"lr": 1e-9})
    train(config)
    trained = load_prompt(tmp_path / "run" / "artifact", backbone)
    torch.testing.assert_close(trained.table("embedding"), mixed.table("embedding"), atol=1e-6, rtol=0)
    curve = read_curve(tmp_path / "run", start=7.0)
    assert curve.steps == (0, 4, 8, 12) and curve.values[0] == 7.0 and curve.lower_is_better
    with pytest.raises(DataError, match=r"dev\.every"):
        read_curve(tmp_path / "run", "bleu")
