"""What a frozen model allows: its output head applied to chosen positions, losses whose logits never exist at once.

The head is frozen, so the loss's gradient for a hidden state can be computed together with the loss itself, a chunk
of positions at a time; nothing of size [M, V] is kept for the backward pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreword.backbone import Backbone
from foreword.shapes import Float, Int

CHUNK_BYTES = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Size of one chunk's float32 logits: near the last-level cache on a CPU, enough to fill a GPU."""


@dataclass(frozen=True, eq=False)
class Head:
    """From a final hidden state to logits: `softcap(scale * hidden @ weight.T + bias)`.

    Attributes:
        module: the frozen output layer.
        scale: what hidden states are multiplied by (T5 with tied embeddings: E ** -0.5; Granite, Cohere).
        extra_bias: [V] added after the layer (BART's final_logits_bias), or None.
        softcap: logits become softcap * tanh(logits / softcap) (Gemma 2), or None.
    """

    module: nn.Linear
    scale: float = 1.0
    extra_bias: Float[Tensor, " V"] | None = None
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "M E"]) -> Float[Tensor, "M V"]:
        """Return logits in the hidden states' dtype."""
        logits = F.linear(hidden if self.scale == 1.0 else hidden * self.scale, self.module.weight, self.module.bias)
        if self.extra_bias is not None:
            logits = logits + self.extra_bias.to(logits.device, logits.dtype)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def losses(self, hidden: Float[Tensor, "M E"], labels: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
        """Return -log p of each label in float32, differentiable in `hidden`."""
        return _HeadLoss.apply(hidden, labels, self)


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy through a frozen head: the forward pass also makes each row's gradient, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
        losses = torch.empty(len(labels), dtype=_loss_dtype(hidden), device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for rows in _chunks(len(labels), head.module.weight.shape[0], hidden.device):
            chunk, target = head.logits(hidden[rows]), labels[rows, None]
            scores = chunk.to(losses.dtype)
            total = scores.logsumexp(-1, keepdim=True)
            losses[rows] = (total - scores.gather(1, target))[:, 0]
            if gradient is not None:
                gradient[rows] = _hidden_gradient(head, chunk, scores, total, target)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (None if gradient is None else (gradient * grad[:, None]).to(gradient.dtype)), None, None


def _loss_dtype(states: Tensor) -> torch.dtype:
    """The loss is computed in float32 whatever the model computes in, except in double-precision checks."""
    return torch.float64 if states.dtype == torch.float64 else torch.float32


def _hidden_gradient(head: Head, logits: Tensor, scores: Tensor, total: Tensor, target: Tensor) -> Tensor:
    """Return d loss / d hidden [m, E] of one chunk: (softmax - one-hot) @ weight, through soft-cap and scale."""
    # `scores` is a copy of its own unless logits are float32 already; then nobody needs the logits any more.
    slope = None if head.softcap is None else 1 - (scores / head.softcap).square()
    probability = scores.sub_(total).exp_()
    probability.scatter_add_(1, target, torch.full_like(probability[:, :1], -1.0))
    if slope is not None:
        probability *= slope
    gradient = probability.to(logits.dtype) @ head.module.weight
    return gradient if head.scale == 1.0 else gradient * head.scale


def _chunks(rows: int, vocabulary: int, device: torch.device) -> list[slice]:
    size = max(16, CHUNK_BYTES.get(device.type, 1 << 24) // (4 * vocabulary))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def find_head(backbone: Backbone) -> Head | None:
    """Return the model's head if `hidden -> head -> logits` is all that the model does, else None.

    One probing pass compares the head's logits with the model's own; a model that does anything else after its
    last hidden state (a projection, a mixture) must be run as a whole. The answer is kept on the model.
    """
    model = backbone.model
    if not hasattr(model, "foreword_head"):
        model.foreword_head = _probe_head(backbone)
    head = model.foreword_head
    # FSDP and tensor parallelism replace a weight by a shard of it after the probe.
    usable = head is not None and type(head.module.weight) in (nn.Parameter, Tensor) and head.module.weight.dim() == 2
    return head if usable else None


def decoder_of(backbone: Backbone) -> nn.Module:
    """Return the part of the model whose last hidden states the head turns into logits."""
    return backbone.model.get_decoder()


@torch.no_grad()
def _probe_head(backbone: Backbone) -> Head | None:
    model = backbone.model
    module = model.get_output_embeddings()
    if type(module) is not nn.Linear or decoder_of(backbone) is model:
        return None
    hidden: list[Tensor] = []
    hook = decoder_of(backbone).register_forward_hook(lambda _, __, output: hidden.append(output.last_hidden_state[0]))
    try:
        logits = _probe_logits(backbone)
    finally:
        hook.remove()
    if len(hidden) != 1 or hidden[0].shape[-1] != module.in_features or hidden[0].dtype != module.weight.dtype:
        return None
    return next(
        (head for head in _candidates(model, module, hidden[0], logits) if _agrees(head, hidden[0], logits)), None
    )


def _probe_logits(backbone: Backbone) -> Float[Tensor, "T V"]:
    """Return the model's logits for a few tokens spread over the vocabulary."""
    size = backbone.model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 6, device=backbone.device)[None] * size // 7
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if backbone.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return backbone.model(**inputs, use_cache=False).logits[0]


def _candidates(model: nn.Module, module: nn.Linear, hidden: Tensor, logits: Tensor) -> list[Head]:
    """Return the forms a head is known to take, each to be checked against the model's logits."""
    config = model.config.get_text_config(decoder=True)
    known = (getattr(config, "logit_scale", None), 1 / (getattr(config, "logits_scaling", None) or 1))
    scales = [1.0, hidden.shape[-1] ** -0.5, *(float(scale) for scale in known if isinstance(scale, int | float))]
    heads = [Head(module, scale) for scale in scales]
    if cap := getattr(config, "final_logit_softcapping", None):
        return [Head(module, scale, softcap=float(cap)) for scale in scales] + heads
    biased = [Head(module, head.scale, (logits - head.logits(hidden)).float().mean(0)) for head in heads]
    return heads + biased


def _agrees(head: Head, hidden: Tensor, logits: Tensor) -> bool:
    """Whether the head gives the model's logits to rounding."""
    tolerance = 4 * torch.finfo(logits.dtype).eps * float(logits.float().abs().max())
    return bool((head.logits(hidden).float() - logits.float()).abs().max() <= tolerance)


def whole_losses(logits: Float[Tensor, "M V"], labels: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Return -log p of each label in float32 from logits that a whole model made."""
    return F.cross_entropy(logits.to(_loss_dtype(logits)), labels, reduction="none")
