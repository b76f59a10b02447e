"""Injection: how a soft prompt enters a frozen model, through Transformers' attention interface and nothing else.

`install` gives every attention module of a model a *site* `(stack, layer)` and switches the model to our attention
function. That function looks its site up in the prompts of the running call and puts the prefix's keys and values in
front of the text's. No model class is named here and no model code is patched.

How the prompts reach the function: `activate` sets a context variable (safe under threads), and a forward pre-hook
on the model hands the same object down as a keyword argument. The argument matters under gradient checkpointing:
on a GPU, backward recomputes layers in autograd's own threads, where the context variable is not set.

Positions: on decoders the text of a row starts at that row's prefix length (the papers' and PEFT's convention), so
`position_ids` are shifted row by row. Encoder-decoders are not shifted: T5's relative bias is zero for prefix
slots, and BART's learned positions count text only.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foreword.errors import PromptError
from foreword.prompts.bank import Bank, RowLayout, Site

IMPLEMENTATION = "foreword"


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
            lowest = torch.finfo(self.query.dtype).min
            return torch.where(call.mask, self.bias, lowest).to(self.query.dtype)
        return (self.bias + call.mask).to(self.query.dtype)


class Active(Protocol):
    """Whatever may stand in the context variable: an injection, a recorder, or `install`'s probe."""

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """Return the attention output for one module's call."""
        ...

    def for_forward(self, model: PreTrainedModel, kwargs: dict[str, Any]) -> tuple["Active", dict[str, Any]]:
        """Return what this forward pass carries, and the model's keyword arguments to run it with."""
        ...


_ACTIVE: ContextVar[Active | None] = ContextVar("foreword_active", default=None)


@contextlib.contextmanager
def activate(active: Active | None) -> Iterator[None]:
    """Run the enclosed forward passes of this thread with `active` in every attention; None switches prompts off."""
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def install(model: PreTrainedModel) -> None:
    """Switch `model` to our attention function and hook; calling it twice changes nothing more."""
    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _mask)
    for part in model.modules():  # up to Transformers 5.19, setting it on T5 does not reach the configs of its stacks
        if isinstance(part, PreTrainedModel):
            part.set_attn_implementation(IMPLEMENTATION)
    if not getattr(model, "foreword_hooked", False):
        for entrance in entrances(model):
            entrance.register_forward_pre_hook(_hand_down, with_kwargs=True)
        model.foreword_hooked = True


def entrances(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules through which a forward pass may enter; each has the hook, and the first one entered acts.

    OPT's head calls its decoder past the base model, and training calls the decoder without its head.
    """
    return list({id(m): m for m in (model, model.base_model, model.get_decoder())}.values())


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    foreword: Active | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function registered with Transformers."""
    call = AttentionCall(module, query, key, value, attention_mask, position_bias, options)
    active = foreword if foreword is not None else _ACTIVE.get()
    if active is None:
        return call.run()
    return active.attend(call)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The mask function: explicit masks while prompts are active (to be widened), the stock ones otherwise."""
    active = _ACTIVE.get()
    if getattr(active, "layout", None) is not None:
        return None  # a packed batch brings its own; this one would be [N, N]
    if active is not None:
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(*args, **kwargs)


def _hand_down(model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook: give the running call its positions, and hand the prompts down as a keyword argument."""
    active = _ACTIVE.get()
    if active is None or "foreword" in kwargs:
        return args, kwargs
    if args:
        kwargs = {**dict(zip(("input_ids",), args, strict=True)), **kwargs}
    active, kwargs = active.for_forward(model, kwargs)
    return (), {**kwargs, "foreword": active}


@dataclass(frozen=True)
class Injection:
    """The prompts of one batch: which rows use which prefix, and where their text stands.

    Attributes:
        bank: the distinct prefixes (and infix offsets) of the batch.
        slots: [B] index into the bank, -1 for a row without a prompt; for packed batches one a group.
        layout: for packed batches, where each group's tokens lie; None for padded ones.
        infix_start: [B] text position of the first infix token, -1 for none; None where no row has an infix.
        positions: [B, T] absolute positions of this forward's queries (filled by the hook).
    """

    bank: Bank
    slots: Tensor
    layout: RowLayout | None = None
    infix_start: Tensor | None = None
    positions: Tensor | None = None

    @property
    def prompt_len(self) -> Tensor:
        """[B] prefix length of each row, 0 without one."""
        return torch.where(self.slots >= 0, self.bank.lengths[self.slots.clamp(min=0)], 0)

    def for_forward(self, model: PreTrainedModel, kwargs: dict[str, Any]) -> tuple["Injection", dict[str, Any]]:
        """Return the injection with this forward's positions, and kwargs with shifted `position_ids`."""
        if torch.is_grad_enabled() and self.bank.requires_grad:
            _refuse_lossy_checkpoint(model)
        if model.config.is_encoder_decoder:
            return self, kwargs
        text = self._text_positions(kwargs)
        if self.layout is not None:
            shifted = text + self.prompt_len[self.layout.group_of_token][None]
        else:
            shifted = text + self._per_row(self.prompt_len, text.shape[0])[:, None]
        return dataclasses.replace(self, positions=shifted), {**kwargs, "position_ids": shifted}

    def _text_positions(self, kwargs: dict[str, Any]) -> Tensor:
        """[B, T] positions counted from the first text token: as given, else from the mask, else from the cache."""
        tokens = kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        rows, new_len = tokens.shape[:2]
        if kwargs.get("position_ids") is not None:
            return kwargs["position_ids"].expand(rows, -1)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new_len:]
        cache = kwargs.get("past_key_values")
        start = cache.get_seq_length() if cache is not None else 0
        return (torch.arange(new_len, device=tokens.device) + start).expand(rows, -1)

    def _per_row(self, values: Tensor, rows: int) -> Tensor:
        """Repeat a [B] tensor for beams: `generate` expands each row to `rows / B` neighbours."""
        if rows == values.shape[0]:
            return values
        if rows % values.shape[0]:
            raise PromptError(f"the batch has {rows} rows, not a multiple of the {values.shape[0]} prompts given")
        return values.repeat_interleave(rows // values.shape[0])

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """Return the attention output with each row's prefix before its text."""
        if call.site is None:
            raise PromptError(f"{type(call.module).__name__} has no site; load the model with foreword.load_backbone")
        if self.layout is not None:
            call = self.layout.unpack(call)
        elif call.mask is None:
            call = call.with_explicit_mask()
        rows = call.query.shape[0]
        slots = self._per_row(self.slots, rows)
        if self.infix_start is not None and self.bank.has_infix(call.site):
            call = self._add_infix(call, slots, self._per_row(self.infix_start, rows))
        if self.bank.has_prefix(call.site):
            call = self._add_prefix(call, slots)
        output, weights = call.run()
        return (output if self.layout is None else self.layout.repack(output)), weights

    def _add_prefix(self, call: AttentionCall, slots: Tensor) -> AttentionCall:
        key, value = self.bank.rows(call.site, slots, call.key.dtype)
        index = torch.arange(key.shape[2], device=slots.device)
        visible = index < self.bank.site_lengths(call.site, slots)[:, None]
        visible = visible[:, None, None].expand(-1, 1, call.query.shape[2], -1)
        if call.window is not None and self.positions is not None:
            positions = self.positions if self.layout is None else self.layout.pad(self.positions[0])
            inside = positions[:, None, :, None] - index < call.window
            visible = visible & (inside | self.bank.always_visible[slots.clamp(min=0)][:, None, None, None])
        return _prepend(call, key, value, visible)

    def _add_infix(self, call: AttentionCall, slots: Tensor, start: Tensor) -> AttentionCall:
        """Show queries after the infix its keys and values with the offset added, instead of the plain ones.

        Queries inside the infix see the plain ones, as in the original code, where the offset is added to what the
        frozen model computed (RECIPES 1.7). What a sliding window hides stays hidden.
        """
        offset_key, offset_value = self.bank.infix_rows(call.site, slots, call.key.dtype)
        lengths = torch.where(start >= 0, self.bank.infix_lengths[slots.clamp(min=0)], 0)
        query_at = self._query_index(call)
        first = start + self._first_key(query_at)
        index = torch.arange(offset_key.shape[2], device=start.device)
        at = first[:, None] + index
        held = (index < lengths[:, None]) & (at >= 0)  # a sliding cache has dropped what lies before its first key
        where = at.clamp(min=0, max=call.key.shape[2] - 1)
        gather = where[:, None, :, None].expand(-1, call.key.shape[1], -1, call.key.shape[3])
        key = call.key.gather(2, gather) + offset_key
        value = call.value.gather(2, gather[..., :1].expand(-1, -1, -1, call.value.shape[3])) + offset_value
        after = query_at >= (first + lengths)[:, None]
        seen = _is_visible(call.mask).expand(len(start), -1, call.query.shape[2], -1)
        seen = seen.gather(3, where[:, None, None].expand(-1, 1, call.query.shape[2], -1))
        visible = seen & (held[:, None] & after[:, :, None])[:, None]
        keys = torch.arange(call.key.shape[2], device=start.device)
        plain = (keys >= first[:, None]) & (keys < (first + lengths)[:, None])
        hide = (plain[:, None] & after[:, :, None])[:, None]
        mask = call.mask & ~hide if call.mask.dtype == torch.bool else call.mask.masked_fill(hide, _lowest(call.mask))
        return _prepend(dataclasses.replace(call, mask=mask), key, value, visible)

    def _first_key(self, query_at: Tensor) -> Tensor:
        """[B] key index of each row's text position 0: its left padding, less what a sliding cache has dropped."""
        if self.layout is not None:
            return torch.zeros_like(query_at[:, 0])
        rows = query_at.shape[0]
        positions = self.positions.expand(rows, -1) - self._per_row(self.prompt_len, rows)[:, None]
        return (query_at - positions).amax(-1)  # padding sees earlier keys or none, so real tokens give the maximum

    def _query_index(self, call: AttentionCall) -> Tensor:
        """[B, T] key index at which each query stands: its last visible key (attention is causal here)."""
        visible = _is_visible(call.mask)[:, 0]
        index = torch.arange(visible.shape[-1], device=visible.device)
        at = torch.where(visible, index, -1).amax(-1)
        return at.expand(call.query.shape[0], -1)


class Recorder:
    """Keeps the keys and values [B, K, T, D] that each site computes; gradients flow through them.

    Not a dataclass: FSDP copies dataclasses among a layer's arguments, and what a copy records is lost.
    """

    def __init__(self) -> None:
        self.states: dict[Site, tuple[Tensor, Tensor]] = {}

    def for_forward(self, model: PreTrainedModel, kwargs: dict[str, Any]) -> tuple["Recorder", dict[str, Any]]:
        """Return itself; a recording changes no argument."""
        embeds = kwargs.get("inputs_embeds")
        if torch.is_grad_enabled() and embeds is not None and embeds.requires_grad:
            _refuse_lossy_checkpoint(model)
        return self, kwargs

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """Return the stock output and keep the call's keys and values."""
        self.states[call.site] = (call.key, call.value)
        return call.run()


def _refuse_lossy_checkpoint(model: PreTrainedModel) -> None:
    """Raise where gradient checkpointing would drop the prompt in silence when it recomputes a layer.

    Reentrant checkpoints run the layer without gradients, and a layer that receives no keyword arguments is
    recomputed without the prompt where backward runs in another thread.
    """
    layers = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    if not (model.training and layers):
        return
    function = next((f for f in (getattr(m, "_gradient_checkpointing_func", None) for m in layers) if f), None)
    if getattr(function, "keywords", {}).get("use_reentrant") is not False:
        raise PromptError(
            "gradient checkpointing is on with use_reentrant other than False, which trains no prompt; enable it with "
            "the keyword arguments {'use_reentrant': False}"
        )
    if not model.foreword_hands_down:
        raise PromptError(
            f"{type(model).__name__} hands no keyword arguments to its attention, so gradient checkpointing would "
            "recompute layers without the prompt; turn gradient checkpointing off for this model"
        )


def _prepend(call: AttentionCall, key: Tensor, value: Tensor, visible: Tensor) -> AttentionCall:
    """Return the call with P more keys in front: `visible` [B, 1, T, P] says which query sees which."""
    mask = call.mask.expand(visible.shape[0], -1, -1, -1)
    if mask.dtype != torch.bool:
        visible = torch.zeros_like(visible, dtype=mask.dtype).masked_fill(~visible, _lowest(mask))
    bias = call.bias
    if bias is not None:
        bias = torch.cat([bias.new_zeros(*bias.shape[:-1], key.shape[2]), bias], -1)
    return dataclasses.replace(
        call,
        key=torch.cat([key, call.key], 2),
        value=torch.cat([value, call.value], 2),
        mask=torch.cat([visible, mask], -1),
        bias=bias,
        options={**call.options, "is_causal": False},
    )


def _is_visible(mask: Tensor) -> Tensor:
    """Return a bool or additive mask as bool."""
    return mask if mask.dtype == torch.bool else mask == 0


def _lowest(mask: Tensor) -> float:
    return torch.finfo(mask.dtype).min


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
    scores = scores + (torch.where(mask, 0.0, _lowest(scores)).to(dtype) if mask.dtype == torch.bool else mask)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(call.query.dtype)[..., : key.shape[2]]
    return (weights @ value).transpose(1, 2).contiguous(), weights
