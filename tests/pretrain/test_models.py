import math

import pytest
import torch

from foreword.errors import ConfigError
from foreword.pretrain.models import build_model, count_parameters
from foreword.pretrain.muon import StackedMuon, orthogonalise
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


@pytest.mark.parametrize("kind", ["muon", "muon_float32", "muon_bfloat16", "adamw"])
@pytest.mark.parametrize("family", ["decoder", "t5"])
def test_every_parameter_has_one_optimiser(family: str, kind: str):
    model = build_model(family, "tiny", 100, 64, 0)
    held = [p for o in build_optimizers(model, OptimConfig(kind=kind)) for g in o.param_groups for p in g["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("kind", ["muon", "muon_float32", "adamw"])
def test_t5_queries_learn_at_the_rate_of_the_attention_scale_they_carry(kind: str):
    model = build_model("t5", "tiny", 100, 64, 0)
    queries = {id(p) for name, p in model.named_parameters() if name.endswith(".q.weight")}
    groups = [g for o in build_optimizers(model, OptimConfig(kind=kind)) for g in o.param_groups]
    of_queries = {g["lr"] for g in groups for p in g["params"] if id(p) in queries}
    same_shape = {g["lr"] for g in groups for p in g["params"] if p.shape == (32, 32) and id(p) not in queries}
    assert len(queries) == 3 and len(of_queries) == 1
    assert max(of_queries) == pytest.approx(min(same_shape) * model.config.d_kv**-0.5)


def test_schedule_warms_up_holds_and_decays():
    config = OptimConfig(warmup_steps=10, decay_share=0.25)
    factors = [lr_factor(config, step, 100) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == factors[74] == 1.0
    assert factors[75] == 1.0 and 0 < factors[99] < 0.05
    assert decay_steps(config, 100) == 25
    assert lr_factor(config, 40, 80, decay_start=40) == 1.0 and lr_factor(config, 50, 80, decay_start=40) == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(192, 512), (512, 192), (64, 64)])
def test_stacked_muon_is_pytorchs_but_for_rounding(shape: tuple[int, int], dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for _ in range(3)]
    ours, theirs = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    options = {"lr": 0.03, "weight_decay": 0.01, "momentum": 0.95}
    optimizers = [
        StackedMuon(ours, **options, dtype=dtype),
        torch.optim.Muon(theirs, **options, adjust_lr_fn="original"),
    ]
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            gradient = torch.randn(shape, generator=generator)
            one.grad, other.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    for start, one, other in zip(starts, ours, theirs, strict=True):
        moved = (one - start).norm()
        assert moved > 0.4 and (one - other).norm() < 0.02 * moved  # bfloat16 keeps 8 bits


def test_a_matrix_without_a_gradient_stays():
    still, moving = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    moving.grad = torch.eye(4)
    StackedMuon([still, moving], lr=0.1).step()
    assert torch.equal(still, torch.ones(4, 4)) and not torch.equal(moving, torch.ones(4, 4))


def test_orthogonalise_brings_singular_values_near_one():
    matrices = torch.randn(2, 40, 90, generator=torch.Generator().manual_seed(0))
    for given in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalise(given))
        assert orthogonalise(given).shape == given.shape and values.min() > 0.5 and values.max() < 1.3
