"""What a frozen model allows: fused activations, and a loss whose logits never exist.

The head is frozen, so the loss's gradient for a hidden state can be computed together with the loss itself, a block
of the vocabulary at a time; nothing of size [M, V] ever exists.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import activations

from foreword.shapes import Float, Int

if TYPE_CHECKING:
    from foreword.backbone import Backbone

BLOCK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 27}
"""Size of one block of float32 logits: what stays in a CPU's cache, what fills a GPU."""


EVERYTHING = slice(None)


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

    def logits(self, hidden: Float[Tensor, "M E"], columns: slice = EVERYTHING) -> Float[Tensor, "M V"]:
        """Return the logits of some vocabulary columns (all by default) in the hidden states' dtype."""
        bias = None if self.module.bias is None else self.module.bias[columns]
        logits = F.linear(hidden if self.scale == 1.0 else hidden * self.scale, self.module.weight[columns], bias)
        if self.extra_bias is not None:
            logits = logits + self.extra_bias[columns].to(logits.device, logits.dtype)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def slope(self, logits: Tensor) -> Tensor | None:
        """Return d logits / d (logits before the soft-cap), or None without one."""
        return None if self.softcap is None else 1 - (logits / self.softcap).square()

    def losses(self, hidden: Float[Tensor, "M E"], labels: Int[Tensor, " M"]) -> Float[Tensor, " M"]:
        """Return -log p of each label in float32, differentiable in `hidden`."""
        return _HeadLoss.apply(hidden, labels, self)


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy through a frozen head in one pass over blocks of the vocabulary.

    d loss / d hidden is softmax(logits) @ weight - weight[label]: an attention over the rows of the weight. It is
    summed as flash attention sums (Dao et al. 2022, algorithm 1): each block adds exp(logits - top) @ weight[block],
    and the sum is rescaled when the running maximum `top` rises. Logits [M, V] never exist, in neither pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
        rows, labels, wants_gradient = hidden.detach(), labels[:, None], ctx.needs_input_grad[0]
        total = rows.new_zeros(len(rows), 1, dtype=_loss_dtype(rows))  # of exp(logits - top)
        top, wanted = torch.full_like(total, -torch.inf), torch.zeros_like(total)
        gradient = rows.new_zeros(rows.shape, dtype=total.dtype) if wants_gradient else None
        for columns in _blocks(len(rows), head.module.out_features, rows.device):
            scores = head.logits(rows, columns).to(total.dtype)
            slope = head.slope(scores) if wants_gradient else None
            wanted = _pick(scores, labels - columns.start, wanted)
            higher = torch.maximum(top, scores.amax(-1, keepdim=True))
            shrink, top = (top - higher).exp_(), higher
            scores = scores.sub_(top).exp_()
            total = total.mul_(shrink).add_(scores.sum(-1, keepdim=True))
            if gradient is not None:
                scores = scores if slope is None else scores.mul_(slope)
                gradient.mul_(shrink).add_(scores.to(rows.dtype) @ head.module.weight[columns])
        if gradient is not None:
            slope = head.slope(wanted)
            label_rows = head.module.weight[labels[:, 0]]
            gradient.div_(total).sub_(label_rows if slope is None else label_rows * slope).mul_(head.scale)
            ctx.save_for_backward(gradient.to(rows.dtype))
        return (top + total.log() - wanted)[:, 0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None].to(gradient.dtype), None, None


def _pick(scores: Tensor, columns: Tensor, otherwise: Tensor) -> Tensor:
    """Return [M, 1] each row's score in its column, or `otherwise` where the column lies outside."""
    width = scores.shape[1]
    return torch.where((columns >= 0) & (columns < width), scores.gather(1, columns.clamp(0, width - 1)), otherwise)


def _loss_dtype(states: Tensor) -> torch.dtype:
    """The loss is computed in float32 whatever the model computes in, except in double-precision checks."""
    return torch.float64 if states.dtype == torch.float64 else torch.float32


def _blocks(rows: int, vocabulary: int, device: torch.device) -> list[slice]:
    size = max(256, BLOCK_BYTES.get(device.type, 1 << 21) // (4 * rows))
    return [slice(start, min(start + size, vocabulary)) for start in range(0, vocabulary, size)]


def find_head(backbone: "Backbone") -> Head | None:
    """Return the model's head if `hidden -> head -> logits` is all that the model does, else None.

    One probing pass compares the head's logits with the model's own; a model that does anything else after its
    last hidden state (a projection, a mixture) must be run as a whole. The answer is kept on the model.
    """
    model = backbone.model
    output = model.get_output_embeddings()
    if output is not None and any(parameter.requires_grad for parameter in output.parameters()):
        return None  # full fine-tuning: a head that trains needs the gradient that `Head.losses` leaves out
    if not hasattr(model, "foreword_head"):
        model.foreword_head = _probe_head(backbone)
    head = model.foreword_head
    # FSDP and tensor parallelism replace a weight by a shard of it after the probe.
    usable = head is not None and type(head.module.weight) in (nn.Parameter, Tensor) and head.module.weight.dim() == 2
    return head if usable else None


def decoder_of(backbone: "Backbone") -> nn.Module:
    """Return the part of the model whose last hidden states the head turns into logits."""
    return backbone.model.get_decoder()


@torch.no_grad()
def _probe_head(backbone: "Backbone") -> Head | None:
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


def _probe_logits(backbone: "Backbone") -> Float[Tensor, "T V"]:
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


@torch.no_grad()
def fuse_activations(model: nn.Module) -> int:
    """Replace activations written as chains of element-wise operations by PyTorch's fused one; return how many.

    GPT-2's tanh GELU is eight passes over the widest tensor of a layer, and most of their results are kept for the
    backward pass. A Transformers activation is replaced only if it has no state and is the same function (probed in
    float64), so the state dict and the model's digest stay as they are.
    """
    fused = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__module__ == activations.__name__ and _is_tanh_gelu(child):
                setattr(parent, name, nn.GELU(approximate="tanh"))
                fused += 1
    return fused


def _is_tanh_gelu(module: nn.Module) -> bool:
    if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
        return False
    probe = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    return bool(torch.allclose(module(probe), F.gelu(probe, approximate="tanh"), rtol=1e-9, atol=1e-9))
