"""Muon for hidden matrices, AdamW for the rest, and the warm-up, stable, decay schedule of both."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from foreword.pretrain.models import is_embedding, matrix_scale
from foreword.pretrain.muon import StackedMuon


@dataclass(frozen=True)
class OptimConfig:
    """Rates are at the top of the schedule. They serve all sizes (see models.py on width scaling)."""

    # `muon` is PyTorch's, its iteration in bfloat16; the others with a type are ours, over stacks of matrices.
    kind: Literal["muon", "muon_float32", "muon_bfloat16", "adamw"] = "muon"
    matrix_lr: float = 0.03  # of Muon; of AdamW it is multiplied by 64 / fan-in, muP's rule
    embedding_lr: float = 0.008
    weight_decay: float = 0.01  # of matrices, times their rate
    warmup_steps: int = 100
    schedule: Literal["wsd", "cosine"] = "wsd"
    decay_share: float = 0.3  # of the steps, at the end; linear to zero
    grad_clip: float = 1.0


def build_optimizers(model: PreTrainedModel, config: OptimConfig) -> list[Optimizer]:
    """Return the optimisers; every parameter is in exactly one of them."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [(p, matrix_scale(name, model.config)) for name, p in named if p.dim() == 2 and not is_embedding(name)]
    chosen = {id(p) for p, _ in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    on_gpu = others[0].device.type == "cuda"
    rest = {"params": others, "lr": config.embedding_lr, "weight_decay": 0.0}
    if config.kind != "adamw":
        adam = torch.optim.AdamW([rest], betas=(0.9, 0.95), fused=on_gpu, capturable=on_gpu)
        optimizers: list[Optimizer] = [_muon(matrices, config), adam]
    else:
        groups = [
            {"params": [p], "lr": config.matrix_lr * scale * 64 / p.shape[1], "weight_decay": config.weight_decay}
            for p, scale in matrices
        ]
        optimizers = [torch.optim.AdamW([rest, *groups], betas=(0.9, 0.95), fused=on_gpu, capturable=on_gpu)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["top_lr"] = group["lr"]
    return optimizers


def _muon(matrices: list[tuple[Tensor, float]], config: OptimConfig) -> Optimizer:
    """Return a Muon with a parameter group for every scale of the rate."""
    groups = [
        {"params": [p for p, own in matrices if own == scale], "lr": config.matrix_lr * scale}
        for scale in sorted({own for _, own in matrices}, reverse=True)
    ]
    if config.kind == "muon":
        return torch.optim.Muon(
            groups,
            weight_decay=config.weight_decay,
            momentum=0.95,
            adjust_lr_fn="original",  # × sqrt(max(1, fan-out / fan-in)): the spectral condition
        )
    dtype = torch.float32 if config.kind == "muon_float32" else torch.bfloat16
    return StackedMuon(groups, lr=config.matrix_lr, weight_decay=config.weight_decay, dtype=dtype)


def lr_factor(config: OptimConfig, step: int, steps: int, decay_start: int | None = None) -> float:
    """Return the rate at `step` (from 0) as a share of the top rate.

    Args:
        config: `wsd` is flat between warm-up and decay, `cosine` falls from the end of the warm-up to a tenth.
        step: the step about to be made.
        steps: the run's length.
        decay_start: where a deadline made the decay begin, if it did.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(done, 1.0)))
    length = decay_steps(config, steps)
    start = steps - length if decay_start is None else decay_start
    return 1.0 if step < start else max((start + length - step) / max(length, 1), 0.0)


def decay_steps(config: OptimConfig, steps: int) -> int:
    """Return the length of the WSD decay in steps."""
    return round(config.decay_share * steps)


def set_lr(optimizers: list[Optimizer], factor: float) -> None:
    """Give every parameter group its top rate times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            rate = group["top_lr"] * factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def restore(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load an optimiser's saved state, but for what follows from the device it is on now, which may be another."""
    keys = ("lr", "fused", "capturable")
    own = [{key: group[key] for key in keys if key in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept)
