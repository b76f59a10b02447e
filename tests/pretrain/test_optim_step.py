import pytest
import torch

from foreword.pretrain.batch import Batch, Loss
from foreword.pretrain.models import build_model
from foreword.pretrain.optim import OptimConfig, build_optimizers, set_lr
from foreword.pretrain.step import OptimStep


def batch_of(seed: int, rows: int = 4, inputs: int = 24, targets: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.randint(2, 300, (rows, targets), generator=generator)
    wanted[0, -3:] = -100
    shifted = torch.cat([torch.zeros(rows, 1, dtype=torch.long), wanted.clamp(min=0)[:, :-1]], dim=1)
    return Batch(torch.randint(2, 300, (rows, inputs), generator=generator), wanted, shifted)


def weights_after(steps: list[list[Batch]], device: str = "cpu", graphed: bool = False, kind: str = "muon_float32"):
    """Return the metrics of the last step and all weights after some, the rate another at every one."""
    model = build_model("t5", "tiny", 300, 64, seed=0).to(device)
    optimizers = build_optimizers(model, OptimConfig(kind=kind))
    step = OptimStep(model, optimizers, Loss(compiled=False), 1.0, bfloat16=False, graphed=graphed)
    for number, batches in enumerate(steps):
        set_lr(optimizers, 1 / (number + 1))
        metrics = {name: float(value) for name, value in step(batches).items()}
    return metrics, torch.cat([parameter.detach().flatten().cpu() for parameter in model.parameters()])


def test_micro_batches_make_the_step_of_one_batch():
    first, second = batch_of(1), batch_of(2)
    pairs = [(getattr(first, n), getattr(second, n)) for n in ("inputs", "targets", "decoder_inputs")]
    metrics, weights = weights_after([[first, second]])
    wanted, wanted_weights = weights_after([[Batch(*(torch.cat(pair) for pair in pairs))]])
    assert metrics == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(weights, wanted_weights, rtol=1e-4, atol=1e-5)


def test_given_masks_are_those_transformers_builds():
    model = build_model("t5", "tiny", 300, 64, seed=0)
    batch = batch_of(4)
    labels = batch.targets
    with torch.no_grad():
        wanted = model(input_ids=batch.inputs, decoder_input_ids=batch.decoder_inputs, labels=labels).loss
        losses = Loss(compiled=False).per_target(model, batch)
    torch.testing.assert_close(losses.sum() / (labels >= 0).sum(), wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("kind", ["muon_float32", "adamw"])
def test_replayed_steps_are_the_plain_ones(kind: str):
    """Two shapes of batch, each met until its graph is replayed, under a changing rate."""
    shapes = [(24, 16), (40, 8)]
    steps = [[batch_of(seed, 4, *shapes[seed % 2]).pin_memory()] for seed in range(10)]
    metrics, weights = weights_after(steps, "cuda", graphed=True, kind=kind)
    wanted, wanted_weights = weights_after(steps, "cuda", kind=kind)
    assert metrics == pytest.approx(wanted, rel=1e-3)
    torch.testing.assert_close(weights, wanted_weights, rtol=1e-3, atol=1e-4)
