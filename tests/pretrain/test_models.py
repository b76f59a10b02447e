import math

import pytest
import torch

from foreword.errors import ConfigError
from foreword.pretrain.models import build_model, count_parameters
from foreword.pretrain.muon import MuonFloat32, orthogonalise
from foreword.pretrain.optim import OptimConfig, build_optimizers, decay_steps, lr_factor


@pytest.mark.parametrize("family", ["decoder", "t5"])
@pytest.mark.parametrize(("size", "millions"), [("1.5m", 1.5), ("6m", 6), ("20m", 20)])
def test_sizes_are_what_their_names_say(family: str, size: str, millions: float):
    model = build_model(family, size, vocabulary=16_384, positions=1024, seed=0)
    assert 0.9 * millions < count_parameters(model) / 1e6 < 1.2 * millions
    assert 2 * count_parameters(model) < 50e6  # bytes in bfloat16


@pytest.mark.parametrize("family", ["decoder", "t5"])
def test_the_first_loss_is_that_of_a_guess(family: str):
    model = build_model(family, "tiny", vocabulary=500, positions=64, seed=1)
    ids = torch.randint(2, 500, (2, 24), generator=torch.Generator().manual_seed(0))
    loss = model(input_ids=ids, labels=ids).loss
    assert abs(loss.item() - math.log(500)) < 0.3


def test_weights_follow_from_the_seed():
    one, same, other = (build_model("decoder", "tiny", 100, 64, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_an_unknown_size_names_the_nearest():
    with pytest.raises(ConfigError, match="'20m'"):
        build_model("decoder", "20mm", 100, 64, 0)


@pytest.mark.parametrize("kind", ["muon", "muon_float32", "adamw"])
@pytest.mark.parametrize("family", ["decoder", "t5"])
def test_every_parameter_has_one_optimiser(family: str, kind: str):
    model = build_model(family, "tiny", 100, 64, 0)
    held = [p for o in build_optimizers(model, OptimConfig(kind=kind)) for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))


def test_schedule_warms_up_holds_and_decays():
    config = OptimConfig(warmup_steps=10, decay_share=0.25)
    factors = [lr_factor(config, step, 100) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == factors[74] == 1.0
    assert factors[75] == 1.0 and 0 < factors[99] < 0.05
    assert decay_steps(config, 100) == 25
    assert lr_factor(config, 40, 80, decay_start=40) == 1.0 and lr_factor(config, 50, 80, decay_start=40) == 0.5


@pytest.mark.parametrize("shape", [(192, 512), (512, 192), (64, 64)])
def test_muon_in_float32_is_pytorchs_but_for_rounding(shape: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    options = {"lr": 0.03, "weight_decay": 0.01, "momentum": 0.95}
    optimizers = [
        MuonFloat32([ours], **options),
        torch.optim.Muon([theirs], **options, adjust_lr_fn="original"),
    ]
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (ours - start).norm()
    assert moved > 0.4 and (ours - theirs).norm() < 0.02 * moved  # bfloat16 keeps 8 bits


def test_orthogonalise_brings_singular_values_near_one():
    matrix = torch.randn(40, 90, generator=torch.Generator().manual_seed(0))
    for given in (matrix, matrix.T):
        values = torch.linalg.svdvals(orthogonalise(given))
        assert orthogonalise(given).shape == given.shape and values.min() > 0.5 and values.max() < 1.3
