"""One call of attention: what Transformers hands over, how the stock function runs it, and how it is widened."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from foreword.prompts.bank import Site


@dataclass(frozen=True)
class AttentionCall:
    """What Transformers hands to an attention function, in one piece.

    `query` is [B, H, T, D], `key` and `value` [B, K, S, D]; `mask` is [B, 1, T, S] (bool or additive) or None;
    `bias` is T5's relative position bias [1 or B, H, T, S] or None.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    bias: Tensor | None
    options: dict[str, Any]

    @property
    def site(self) -> Site | None:
        """The `(stack, layer)` that `install` gave the module, or None."""
        return getattr(self.module, "foreword_site", None)

    @property
    def window(self) -> int | None:
        """The module's sliding window in tokens, or None for full attention."""
        return self.options.get("sliding_window") or getattr(self.module, "sliding_window", None)

    def run(self) -> tuple[Tensor, Tensor | None]:
        """Return the stock attention's output [B, T, H, D] (and no weights)."""
        options = dict(self.options)
        mask = self.mask
        if self.bias is not None:
            mask, options["is_causal"] = self._mask_with_bias(), False
        if options.get("softcap") is not None or options.get("s_aux") is not None or self._is_slow_in_sdpa():
            return explicit_attention(dataclasses.replace(self, mask=mask))
        return sdpa_attention_forward(self.module, self.query, self.key, self.value, mask, **options)

    def with_explicit_mask(self) -> "AttentionCall":
        """Return the call with a bool mask where SDPA would have relied on `is_causal`, so that it can be widened."""
        causal = self.options.get("is_causal")
        causal = getattr(self.module, "is_causal", True) if causal is None else causal
        new_len, total_len = self.query.shape[2], self.key.shape[2]
        mask = torch.ones(1, 1, new_len, total_len, dtype=torch.bool, device=self.query.device)
        if causal and new_len > 1:
            mask = mask.tril(total_len - new_len)
        return dataclasses.replace(self, mask=mask, options={**self.options, "is_causal": False})

    def _is_slow_in_sdpa(self) -> bool:
        """Training in bfloat16 on a CPU: SDPA's backward takes four times as long as plain products (short texts)."""
        trains = torch.is_grad_enabled() and (self.query.requires_grad or self.key.requires_grad)
        is_bf16 = self.query.dtype == torch.bfloat16 and self.query.device.type == "cpu"
        return trains and is_bf16 and self.key.shape[2] <= 1024  # plain products keep [B, H, T, S]

    def _mask_with_bias(self) -> Tensor:
        call = self if self.mask is not None or self.query.shape[2] == 1 else self.with_explicit_mask()
        if call.mask is None:
            return self.bias.to(self.query.dtype)
        if call.mask.dtype == torch.bool:
            return torch.where(call.mask, self.bias, lowest(self.query)).to(self.query.dtype)
        return (self.bias + call.mask).to(self.query.dtype)


def prepend(call: AttentionCall, key: Tensor, value: Tensor, mask: Tensor | None) -> AttentionCall:
    """Return the call with keys and values [B, K, P, D] before its own, and the mask of them all."""
    return widen(call, torch.cat([key, call.key], 2), torch.cat([value, call.value], 2), mask)


def widen(call: AttentionCall, key: Tensor, value: Tensor, mask: Tensor | None) -> AttentionCall:
    """Return the call with keys and values [B, K, P + S, D] and their mask; T5's bias is zero on the first P."""
    bias = call.bias
    if bias is not None:
        more = key.shape[2] - call.key.shape[2]
        bias = torch.cat([bias.new_zeros(*bias.shape[:-1], more), bias], -1)
    options = {**call.options, "is_causal": False}
    return dataclasses.replace(call, key=key, value=value, mask=mask, bias=bias, options=options)


def join_masks(visible: Tensor, mask: Tensor) -> Tensor:
    """Return the mask [B, 1, T, P + S] of P keys that `visible` [B, 1, T, P] shows and S with a mask of their own."""
    mask = mask.expand(visible.shape[0], -1, -1, -1)
    if mask.dtype != torch.bool:
        visible = torch.zeros_like(visible, dtype=mask.dtype).masked_fill(~visible, lowest(mask))
    return torch.cat([visible, mask], -1)


def is_visible(mask: Tensor) -> Tensor:
    """Return a bool or additive mask as bool."""
    return mask if mask.dtype == torch.bool else mask == 0


def lowest(like: Tensor) -> float:
    """Return the number that hides a key in an additive mask of this dtype."""
    return torch.finfo(like.dtype).min


def explicit_attention(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Attention with what SDPA does not offer: tanh soft-capping of the scores (Gemma 2), sinks [H] (gpt-oss)."""
    groups = call.query.shape[1] // call.key.shape[1]
    key, value = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (call.key, call.value))
    cap, sinks, scaling = (call.options.get(name) for name in ("softcap", "s_aux", "scaling"))
    scaling = call.query.shape[-1] ** -0.5 if scaling is None else scaling
    exact = call.query.dtype == torch.bfloat16 and call.query.device.type == "cpu"  # and no slower there
    dtype = torch.float32 if exact else call.query.dtype
    scores = (call.query.to(dtype) * scaling) @ key.to(dtype).transpose(2, 3)
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    mask = call.mask if call.mask is not None else call.with_explicit_mask().mask
    scores = scores + (torch.where(mask, 0.0, lowest(scores)).to(dtype) if mask.dtype == torch.bool else mask)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(call.query.dtype)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2).contiguous(), weights
