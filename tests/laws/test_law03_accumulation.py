"""Law 3: 1 x 8 = 2 x 4 = 8 x 1 in loss and gradient, with targets of unequal length."""

import pytest
import torch
from lawbook import FAMILIES, difference, random_ids, specs

from foreword.data.examples import Example
from foreword.prompts.spec import InitSpec
from foreword.train.job import train_prompt
from foreword.train.optim import OptimConfig
from foreword.train.parallel import World
from foreword.train.run import TrainData, make_learner
from foreword.train.run_config import Recipe, TrainBatch, resolve_recipe
from foreword.train.step import Trainee, train_step

WAYS = [(8, 1), (4, 2), (1, 8)]


def examples():
    lengths = [1, 12, 3, 7, 2, 9, 5, 16]
    return [Example(random_ids(4 + 2 * i, i), (*random_ids(n, 70 + i), 2)) for i, n in enumerate(lengths)]


def first_step(backbone, spec, rows, accumulation, loss):
    """Return the loss and the gradients of the first step over all eight examples."""
    recipe = Recipe(
        prompt=spec, batch=TrainBatch(rows=rows, accumulation=accumulation), loss=loss, steps=1,
        optim=OptimConfig(clip=None),
    )
    recipe = resolve_recipe(recipe)
    learner, _ = make_learner(recipe, backbone, TrainData(examples()))
    trainee, seen = Trainee(learner, examples(), recipe, World()), {}
    move = trainee.finish_step

    def keep(norm):
        seen.update({key: p.grad.clone() for key, p in trainee.parameters.items()})
        return move(norm)

    trainee.finish_step = keep
    report = train_step(backbone, [trainee], World())[0]
    assert sorted(report.examples) == list(range(8))
    return report, seen


@pytest.mark.parametrize("loss", ["token", "sequence_sum"])
@pytest.mark.parametrize("name", FAMILIES)
def test_accumulation_changes_neither_loss_nor_gradient(name, loss, backbone_of, measure):
    backbone = backbone_of(name)
    spec = specs(name)["prefix-mlp" if loss == "token" else "prompt"]
    made = [first_step(backbone, spec, rows, times, loss) for rows, times in WAYS]
    report, gradients = made[0]
    unit = report.num_tokens if loss == "token" else report.num_targets
    assert report.num_tokens == sum(len(e.target_ids) for e in examples())
    assert torch.allclose(report.loss, report.per_target.sum() / unit)
    scale = max(g.abs().max().item() for g in gradients.values())
    for other, theirs in made[1:]:
        measure("3 loss", name, difference(other.loss, report.loss))
        for key in gradients:
            measure("3 gradient", name, difference(theirs[key] / scale, gradients[key] / scale))


def test_a_mean_of_means_would_differ(backbone_of):
    """The fault that the law forbids is visible on these lengths: averaging each pass's mean is another number."""
    report, _ = first_step(backbone_of("gpt2"), specs("gpt2")["prefix"], 4, 2, "token")
    tokens = torch.tensor([len(examples()[i].target_ids) for i in report.examples])
    halves = [report.per_target[i : i + 4].sum() / tokens[i : i + 4].sum() for i in (0, 4)]
    assert abs(sum(halves) / 2 - report.loss) > 1e-3


def test_whole_runs_agree(backbone_of, measure):
    """Three steps of AdamW on the same data: the learned tables are the same however the batch is cut."""
    backbone, made = backbone_of("gpt2"), []
    spec = specs("gpt2")["prefix"]
    assert spec.init == InitSpec()
    for rows, times in WAYS:
        batch = TrainBatch(rows=rows, accumulation=times, shuffle=False)
        made.append(train_prompt(backbone, examples(), spec, batch=batch, steps=3).prompt.table("decoder").detach())
    measure("3 tables after 3 steps", "gpt2", max(difference(table, made[0]) for table in made[1:]))
