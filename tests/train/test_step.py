"""One step: accumulation, normalisation, shared sources and the guards."""

import pytest
import torch
from backbones import FAMILIES, make
from torch.utils._python_dispatch import TorchDispatchMode
from toy import EXAMPLES, drawn_prompt, recipe

from foreword.data.examples import Example
from foreword.errors import ConfigError, TrainingError
from foreword.prompts.batch import Row
from foreword.train.learner import PromptLearner, SeededDropout
from foreword.train.loss import target_loss
from foreword.train.parallel import World
from foreword.train.run_config import TrainBatch
from foreword.train.step import Trainee, make_pass, train_step

FIXED = {"shuffle": False}


def trainee(backbone, prompt=None, examples=EXAMPLES, **changes):
    changes.setdefault("batch", TrainBatch(rows=8, **FIXED))
    learner = PromptLearner(prompt or drawn_prompt(backbone), backbone, seed=0)
    return Trainee(learner, examples, recipe(steps=20, **changes), World())


def step_with_gradient(backbone, one):
    """One step, keeping the gradient that the optimiser gets: before clipping."""
    kept = {}
    finish = one.optimiser.step

    def spy(lr):
        kept.update({name: p.grad.clone() for name, p in one.parameters.items()})
        finish(lr)

    one.optimiser.step = spy
    (report,) = train_step(backbone, [one], World())
    scale = 1.0 if report.grad_norm <= 1.0 else (report.grad_norm + 1e-6)  # undo the clip at 1.0
    return report, torch.cat([g.flatten() for g in kept.values()]) * scale


@pytest.mark.parametrize("loss", ["token", "sequence_sum"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
def test_accumulation_changes_neither_loss_nor_gradient(family, loss):
    backbone = make(family)
    figures = []
    for rows, accumulation in ((8, 1), (4, 2), (2, 4), (1, 8)):
        batch = TrainBatch(rows=rows, accumulation=accumulation, **FIXED)
        figures.append(step_with_gradient(backbone, trainee(backbone, loss=loss, batch=batch)))
    first, gradient = figures[0]
    for report, other in figures[1:]:
        assert report.loss.item() == pytest.approx(first.loss.item(), rel=1e-6)
        assert (report.num_tokens, report.num_targets) == (first.num_tokens, first.num_targets) == (27, 8)
        assert (other - gradient).norm() < 1e-5 * gradient.norm()


@pytest.mark.parametrize("loss", ["token", "sequence_sum"])
def test_the_loss_is_the_sum_divided_once(loss):
    backbone = make("llama")
    prompt = drawn_prompt(backbone)
    sums = [target_loss(backbone, [Row(e.source_ids, (e.target_ids,))], [prompt]).sum.item() for e in EXAMPLES]
    batch = TrainBatch(rows=4, accumulation=2, **FIXED)
    (report,) = train_step(backbone, [trainee(backbone, prompt, loss=loss, batch=batch)], World())
    norm = sum(len(e.target_ids) for e in EXAMPLES) if loss == "token" else len(EXAMPLES)
    assert report.loss.item() == pytest.approx(sum(sums) / norm, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_sources_change_neither_loss_nor_gradient(family):
    backbone = make(family)
    apart, gradient = step_with_gradient(backbone, trainee(backbone))
    shared = trainee(backbone, batch=TrainBatch(rows=8, share_sources=True, per_source=0, **FIXED))
    report, other = step_with_gradient(backbone, shared)
    assert report.loss.item() == pytest.approx(apart.loss.item(), rel=2e-6)
    assert (other - gradient).norm() < 2e-5 * gradient.norm()
    assert sorted(report.examples) == sorted(apart.examples)


def test_shared_sources_become_one_row_each():
    part = make_pass(EXAMPLES, range(8), share=True, tail=1)
    assert [len(row.targets) for row in part.rows] == [3, 2, 1, 1, 1]
    assert part.examples == [0, 2, 7, 1, 4, 3, 5, 6]
    assert part.num_tokens == 27
    assert [EXAMPLES[i].target_ids for i in part.examples] == [t for row in part.rows for t in row.targets]
    assert len(make_pass(EXAMPLES, range(8), share=False, tail=1).rows) == 8


def test_steps_follow_from_epochs_and_accumulation():
    backbone = make("llama")
    learner = PromptLearner(drawn_prompt(backbone), backbone, seed=0)

    def total(**changes):
        return Trainee(learner, EXAMPLES, recipe(**changes), World()).total

    assert total(epochs=3.0, batch=TrainBatch(rows=2)) == 12
    assert total(epochs=1.5, batch=TrainBatch(rows=2)) == 6
    assert total(epochs=3.0, batch=TrainBatch(rows=2, accumulation=4)) == 3
    assert total(epochs=1.0, batch=TrainBatch(rows=8, accumulation=4)) == 1
    assert total(steps=7) == 7


def test_a_tensor_without_gradient_is_named():
    backbone = make("llama")
    one = trainee(backbone)
    one.parameters["tables.decoder.weight"].register_hook(torch.zeros_like)
    with pytest.raises(TrainingError, match=r"step 1: tensor 'tables.decoder.weight' got a zero gradient"):
        train_step(backbone, [one], World())
    lost = trainee(backbone)
    lost.parameters["forgotten"] = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(TrainingError, match="tensor 'forgotten' got no gradient"):
        train_step(backbone, [lost], World())


def test_an_empty_target_is_refused():
    backbone = make("llama")
    with pytest.raises(TrainingError, match="no target token"):
        train_step(backbone, [trainee(backbone, examples=[Example((5, 6), ())])], World())


def test_dropout_draws_from_its_own_generator():
    values = torch.ones(50, 40)
    torch.manual_seed(1)
    one = SeededDropout(0.25, 7, torch.device("cpu"))(values)
    torch.manual_seed(2)
    other = SeededDropout(0.25, 7, torch.device("cpu"))(values)
    assert torch.equal(one, other)
    assert one.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (one == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    off = SeededDropout(0.25, 7, torch.device("cpu")).eval()
    assert torch.equal(off(values), values)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"accumulation": 0}, "batch.accumulation"), ({"rows": 2, "tokens": 9}, "rows = 2 and tokens = 9")],
)
def test_bad_batches_are_named(changes, field):
    with pytest.raises(ConfigError, match=field):
        TrainBatch(**changes)


class RepeatedSums(TorchDispatchMode):
    """Notes every `index_put` that adds to one place several times: on CPU threads, in an order of the moment."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "index_put" in func.__name__ and len(args) > 3 and args[3]:
            index = [i for i in args[1] if i is not None and i.dtype != torch.bool]  # a mask repeats nothing
            places = torch.stack(torch.broadcast_tensors(*index), -1).flatten(0, -2) if index else torch.zeros(0, 1)
            if len(places.unique(dim=0)) < len(places):
                self.found.append((func.__name__, tuple(args[0].shape)))
        return func(*args, **(kwargs or {}))


def test_the_guard_sees_what_it_guards_against():
    table = torch.zeros(3, 2, requires_grad=True)
    with RepeatedSums() as guard:
        table[torch.tensor([0, 2, 2])].sum().backward()
    assert [shape for _, shape in guard.found] == [(3, 2)]


@pytest.mark.parametrize("family", [*FAMILIES, "bloom"])
def test_no_gradient_is_added_up_in_an_order_of_the_moment(family):
    """Several targets of one source, several rows of one prompt, several prompts: all sums have a fixed order."""
    backbone = make(family)
    shared = [Example(EXAMPLES[0].source_ids, e.target_ids) for e in EXAMPLES[:4]]
    kinds = ["prompt"] if family == "bloom" else ["prefix", "prefix", "prompt"]
    kinds += [] if backbone.is_encoder_decoder or family == "bloom" else ["infix"]
    members = [
        trainee(
            backbone,
            drawn_prompt(backbone, seed=number, kind=kind, length=3 + number),
            [*shared, *EXAMPLES[4:]],
            batch=TrainBatch(rows=8, share_sources=True, **FIXED),
        )
        for number, kind in enumerate(kinds)
    ]
    with RepeatedSums() as guard:
        train_step(backbone, members, World())
    assert guard.found == []
