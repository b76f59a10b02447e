"""The optimisers equal the papers' code written out, and their state comes back to the last bit."""

import math

import pytest
import torch

from foreword.errors import ConfigError
from foreword.train.optim import OptimConfig, ScheduleConfig, clip_gradients, default_lr, make_optimiser


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "table": torch.randn(5, 12, generator=generator, requires_grad=True),
        "bias": torch.randn(7, generator=generator, requires_grad=True),
    }


def gradients(step, parameters):
    generator = torch.Generator().manual_seed(100 + step)
    scale = 10.0 ** (step % 5 - 4)  # small ones too, where epsilon counts
    return {name: torch.randn(p.shape, generator=generator) * scale for name, p in parameters.items()}


def run(config, steps=12, lr=0.01, seed=0):
    parameters = tensors(seed)
    optimiser = make_optimiser(parameters, config)
    for step in range(steps):
        for name, gradient in gradients(step, parameters).items():
            parameters[name].grad = gradient
        optimiser.step(lr * (1 + step % 3))
    return parameters, optimiser


def hugging_face_adamw(config, steps=12, lr=0.01):
    """transformers 3.2's AdamW.step, one tensor at a time, in float64."""
    values = {name: p.detach().double() for name, p in tensors().items()}
    first = {name: torch.zeros_like(v) for name, v in values.items()}
    second = {name: torch.zeros_like(v) for name, v in values.items()}
    b1, b2 = config.betas
    for step in range(steps):
        rate, t = lr * (1 + step % 3), step + 1
        for name, gradient in gradients(step, values).items():
            gradient = gradient.double()
            first[name] = b1 * first[name] + (1 - b1) * gradient
            second[name] = b2 * second[name] + (1 - b2) * gradient**2
            denominator = second[name].sqrt() + config.eps
            values[name] -= rate * math.sqrt(1 - b2**t) / (1 - b1**t) * first[name] / denominator
            values[name] -= rate * (config.weight_decay or 0.0) * values[name]
    return values


def t5x_adafactor(config, steps=12, lr=0.01):
    """T5X's apply_param_gradient with prompt axes not factored, in float64."""
    values = {name: p.detach().double() for name, p in tensors().items()}
    moment = {name: torch.zeros_like(v) for name, v in values.items()}
    decay = 1e-5 if config.weight_decay is None else config.weight_decay
    for step in range(steps):
        beta2 = 1 - (step + config.step_offset + 1) ** -config.beta2_exponent
        for name, gradient in gradients(step, values).items():
            gradient = gradient.double()
            moment[name] = beta2 * moment[name] + (1 - beta2) * (gradient**2 + 1e-30)
            update = gradient / moment[name].sqrt()
            update = update / max(1.0, update.square().mean().sqrt().item() / config.update_clip)
            scale = lr * (1 + step % 3)
            if config.scale_by_parameter:
                scale = scale * max(values[name].square().mean().sqrt().item(), 1e-3)
            values[name] = values[name] - scale * update - decay * values[name]
    return values


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
@pytest.mark.parametrize("weight_decay", [None, 0.1])
def test_adamw_is_hugging_face_3_2s(eps, weight_decay):
    config = OptimConfig(eps=eps, weight_decay=weight_decay)
    wanted = hugging_face_adamw(config)
    for name, parameter in run(config)[0].items():
        assert (parameter.double() - wanted[name]).abs().max() < 2e-6


def test_plain_torch_adamw_would_not_do():
    config = OptimConfig(eps=1e-3)
    parameters = tensors()
    plain = torch.optim.AdamW(parameters.values(), eps=1e-3, weight_decay=0.0)
    for step in range(12):
        for name, gradient in gradients(step, parameters).items():
            parameters[name].grad = gradient
        plain.param_groups[0]["lr"] = 0.01 * (1 + step % 3)
        plain.step()
    wanted = hugging_face_adamw(config)
    assert (parameters["table"].double() - wanted["table"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes", [{}, {"step_offset": 1_100_000}, {"scale_by_parameter": True}, {"weight_decay": 0.1}]
)
def test_adafactor_is_t5xs(changes):
    config = OptimConfig(name="adafactor", **changes)
    wanted = t5x_adafactor(config)
    for name, parameter in run(config)[0].items():
        assert (parameter.double() - wanted[name]).abs().max() < 5e-6


def test_a_restored_step_makes_every_adafactor_update_as_long_as_the_learning_rate():
    """RECIPES 2.2: beta2 is about 1 - 1.5e-5, v starts at 0, so each update is clipped to RMS 1."""
    config = OptimConfig(name="adafactor", step_offset=1_100_000, weight_decay=0.0)
    parameters = tensors()
    optimiser = make_optimiser(parameters, config)
    for step in range(5):
        before = parameters["table"].detach().clone()
        for name, gradient in gradients(step, parameters).items():
            parameters[name].grad = gradient
        optimiser.step(0.3)
        length = (parameters["table"].detach() - before).square().mean().sqrt()
        assert length == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_state_comes_back_to_the_last_bit(name):
    config = OptimConfig(name=name)
    whole, _ = run(config, steps=12)
    half, optimiser = run(config, steps=7)
    state, taken = optimiser.state()
    state = {key: tensor.clone() for key, tensor in state.items()}
    copies = {key: p.detach().clone().requires_grad_() for key, p in half.items()}
    fresh = make_optimiser(copies, config)
    fresh.load(state, taken)
    for step in range(7, 12):
        for key, gradient in gradients(step, copies).items():
            copies[key].grad = gradient
        fresh.step(0.01 * (1 + step % 3))
    assert all(torch.equal(copies[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_step_drops_the_gradients(name):
    parameters, _ = run(OptimConfig(name=name), steps=1)
    assert all(p.grad is None for p in parameters.values())


def test_schedules():
    linear = ScheduleConfig("linear", warmup=2)
    assert [linear.factor(s, 6) for s in range(6)] == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    assert [ScheduleConfig("constant").factor(s, 3) for s in range(3)] == [1.0, 1.0, 1.0]
    assert [ScheduleConfig("cosine").factor(s, 4) for s in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])
    assert ScheduleConfig("linear", warmup=10).factor(12, 4) == 0.0  # longer than the run: never negative


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (OptimConfig(), 1.0),
        (OptimConfig(clip=0.25), 0.25),
        (OptimConfig(clip=0), None),
        (OptimConfig("adafactor"), None),
    ],
)
def test_clipping(config, limit):
    parameters = tensors()
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    norm = clip_gradients(parameters, config).item()
    assert norm == pytest.approx(math.sqrt(67))
    after = math.sqrt(sum(p.grad.square().sum().item() for p in parameters.values()))
    assert after == pytest.approx(norm if limit is None else limit, rel=1e-4)


def test_default_learning_rates():
    assert default_lr("adafactor", "prompt", "prompt") == 0.3
    assert default_lr("adamw", "prompt", "prefix", "none") == 5e-3
    assert default_lr("adamw", "prompt", "prefix", "mlp") < 5e-3
    assert default_lr("adamw", "fine_tune") == 5e-5


@pytest.mark.parametrize(
    ("field", "value"), [("lr", 0.0), ("lr", -1.0), ("betas", (0.9, 1.0)), ("clip", -1.0), ("weight_decay", -0.1)]
)
def test_bad_values_are_named(field, value):
    with pytest.raises(ConfigError, match=f"optim.{field}"):
        OptimConfig(**{field: value})


def test_bad_warmup_is_named():
    with pytest.raises(ConfigError, match=r"schedule\.warmup"):
        ScheduleConfig(warmup=-1)
