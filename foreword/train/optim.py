"""Optimisers exactly as the papers' code has them, learning-rate schedules, and clipping.

Both optimisers keep float32 state by parameter name, so that a checkpoint is safetensors and JSON, never a pickle.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from foreword.errors import ConfigError
from foreword.shapes import Float


@dataclass(frozen=True)
class OptimConfig:
    """How parameters move.

    Attributes:
        name: `adamw` as Hugging Face 3.2 has it (Li & Liang); `adafactor` as T5X has it for prompts (Lester et al.).
        lr: peak learning rate; None takes the method's default (`default_lr`).
        betas: AdamW's decay rates.
        eps: AdamW's epsilon, added before bias correction.
        weight_decay: None takes 0 for AdamW and 1e-5 for Adafactor. AdamW's is multiplied by the learning rate,
            Adafactor's is not (RECIPES 2.2).
        clip: largest gradient norm; None takes 1.0 for AdamW and no clipping for Adafactor; 0 never clips.
        beta2_exponent: Adafactor's c in beta2_t = 1 - (t + 1)^-c.
        step_offset: Adafactor's t at the first step. The released prompts went on from their T5 checkpoint's step
            (1.1 million), which makes every update clip to `update_clip`.
        update_clip: Adafactor's largest root mean square of an update before the learning rate.
        scale_by_parameter: multiply Adafactor's step by the parameter's own root mean square.
    """

    name: Literal["adamw", "adafactor"] = "adamw"
    lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float | None = None
    clip: float | None = None
    beta2_exponent: float = 0.8
    step_offset: int = 0
    update_clip: float = 1.0
    scale_by_parameter: bool = False

    def __post_init__(self) -> None:
        for field in ("lr", "beta2_exponent", "update_clip"):
            value = getattr(self, field)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"optim.{field} = {value!r} must be positive and finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas = {self.betas!r} must be in [0, 1)")
        for field in ("weight_decay", "clip", "step_offset", "eps"):
            value = getattr(self, field)
            if value is not None and not value >= 0:
                raise ConfigError(f"optim.{field} = {value!r} must not be negative")


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over a run: warm-up from 0, then `constant`, `linear` to 0 or half a `cosine` to 0."""

    name: Literal["constant", "linear", "cosine"] = "linear"
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ConfigError(f"schedule.warmup = {self.warmup!r} must not be negative")

    def factor(self, step: int, total: int) -> float:
        """Return the learning rate of step `step` (from 0) of `total`, as a fraction of its peak.

        As in Hugging Face's schedules, the first step of a warm-up has factor 0.
        """
        if step < self.warmup:
            return step / self.warmup
        if self.name == "constant":
            return 1.0
        progress = (step - self.warmup) / max(1, total - self.warmup)
        return max(0.0, 1 - progress) if self.name == "linear" else 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Optimiser(Protocol):
    """One update rule over named parameters."""

    def step(self, lr: float) -> None:
        """Move every parameter by its gradient, then drop the gradients."""
        ...

    def state(self) -> tuple[dict[str, Tensor], int]:
        """Return the state's tensors by name and the number of steps taken."""
        ...

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Go to a saved state, in place."""
        ...


class AdamW:
    """Hugging Face 3.2's AdamW, run by PyTorch's fused kernel.

    The two differ in epsilon (3.2 adds it before the bias correction of the second moment) and in the order of the
    weight decay (3.2 decays last). So the kernel gets epsilon / sqrt(1 - beta2^t) and no decay.
    """

    def __init__(self, parameters: Mapping[str, Tensor], config: OptimConfig) -> None:
        self.parameters = dict(parameters)
        self.config = config
        self.steps = 0
        tensors = list(self.parameters.values())
        self.inner = torch.optim.Adam(tensors, lr=0.0, betas=config.betas, eps=config.eps, fused=_has_fused(tensors))

    def step(self, lr: float) -> None:
        """Move every parameter by its gradient, then drop the gradients."""
        self.steps += 1
        group = self.inner.param_groups[0]
        group["lr"] = lr
        group["eps"] = self.config.eps / math.sqrt(1 - self.config.betas[1] ** self.steps)
        self.inner.step()
        if self.config.weight_decay:
            with torch.no_grad():
                torch._foreach_mul_(list(self.parameters.values()), 1 - lr * self.config.weight_decay)
        self.inner.zero_grad()

    def state(self) -> tuple[dict[str, Tensor], int]:
        """Return both moments of every parameter and the number of steps taken."""
        tensors = {}
        for name, parameter in self.parameters.items():
            moments = self.inner.state.get(parameter) or {}
            tensors |= {f"{key}.{name}": moments[key] for key in ("exp_avg", "exp_avg_sq") if key in moments}
        return tensors, self.steps

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Go to a saved state, in place."""
        self.steps = steps
        if not steps:
            return
        for name, parameter in self.parameters.items():
            moments = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
            device = parameter.device if self.inner.param_groups[0]["fused"] else "cpu"
            self.inner.state[parameter] = {"step": torch.tensor(float(steps), device=device), **moments}


class Adafactor:
    """T5X's Adafactor as Lester et al. use it: no factoring, no momentum, unscaled weight decay (RECIPES 2.2)."""

    def __init__(self, parameters: Mapping[str, Tensor], config: OptimConfig) -> None:
        self.parameters = dict(parameters)
        self.config = config
        self.steps = 0
        self.moments = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter by its gradient, then drop the gradients."""
        t = self.steps + self.config.step_offset
        mixing = (t + 1.0) ** -self.config.beta2_exponent
        decay = 1e-5 if self.config.weight_decay is None else self.config.weight_decay
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            self.moments[name].lerp_(parameter.grad.square() + 1e-30, mixing)
            update = parameter.grad * self.moments[name].rsqrt()
            update /= (_rms(update) / self.config.update_clip).clamp(min=1.0)
            scale = lr * _rms(parameter).clamp(min=1e-3) if self.config.scale_by_parameter else lr
            parameter.sub_(update * scale + parameter * decay)
            parameter.grad = None
        self.steps += 1

    def state(self) -> tuple[dict[str, Tensor], int]:
        """Return the second moment of every parameter and the number of steps taken."""
        return {f"moment.{name}": moment for name, moment in self.moments.items()}, self.steps

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Go to a saved state, in place."""
        self.steps = steps
        for name, moment in self.moments.items():
            moment.copy_(tensors[f"moment.{name}"])


OPTIMISERS: dict[str, type[AdamW] | type[Adafactor]] = {"adamw": AdamW, "adafactor": Adafactor}


def make_optimiser(parameters: Mapping[str, Tensor], config: OptimConfig) -> Optimiser:
    """Return the configured optimiser over named parameters."""
    return OPTIMISERS[config.name](parameters, config)


def clip_gradients(parameters: Mapping[str, Tensor], config: OptimConfig) -> Float[Tensor, ""]:
    """Return the norm of all gradients together, after scaling them down to the configured norm if it is larger.

    Nothing here waits for the device.
    """
    default = 1.0 if config.name == "adamw" else 0.0
    limit = default if config.clip is None else config.clip
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    if limit:
        torch.nn.utils.clip_grads_with_norm_(list(parameters.values()), limit, norm, foreach=True)
    return norm


def default_lr(optimiser: str, method: str, kind: str = "prefix", reparam: str = "none") -> float:
    """Return the peak learning rate that is used where none is given.

    Sources: Lester et al. (Adafactor 0.3); PEFT's own benchmark, PEERS 1.4 (a direct prefix wants 5e-3); Li & Liang's
    grid for fine-tuning (5e-5) and their small adapters (8e-5); Hu et al. for LoRA (2e-4). Behind an MLP the same step
    moves the prefix much further, so it is smaller.
    """
    if method != "prompt":
        return 1e-3 if optimiser == "adafactor" else {"adapter": 8e-5, "lora": 2e-4}.get(method, 5e-5)
    if optimiser == "adafactor":
        return 0.3 if kind == "prompt" else 0.03
    return 1e-3 if reparam == "mlp" else 5e-3


def _rms(tensor: Tensor) -> Tensor:
    return tensor.square().mean().sqrt()


def _has_fused(tensors: list[Tensor]) -> bool:
    return all(t.is_floating_point() and t.device.type in ("cpu", "cuda", "mps", "xpu") for t in tensors)
