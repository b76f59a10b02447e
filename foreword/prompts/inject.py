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
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foreword.errors import PromptError
from foreword.prompts.attention import AttentionCall, is_visible, join_masks, lowest, prepend, widen
from foreword.prompts.bank import Bank, RowLayout, Site

IMPLEMENTATION = "foreword"

MaskKind = tuple[tuple[bool, ...], int | None]
"""What layers with the same mask have in common: which prompts have a prefix there, and the sliding window."""


class Front(Protocol):
    """A cache layer that keeps room for prefixes in front of its text (`generate/cache.py`)."""

    def holds(self, key: Tensor, value: Tensor) -> bool:
        """Whether a call's keys and values are this layer's, so that the room is before them."""
        ...

    def with_front(self, prefixes: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the layer's keys and values [B, K, P + S, D] from the prefixes [B, K, P, D] on."""
        ...


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
        fronts: by site, cache layers that keep the prefixes before the text, so that they need not be copied there.
        masks: of the running forward pass, by kind of layer: the text's mask and the one that was made of it.
    """

    bank: Bank
    slots: Tensor
    layout: RowLayout | None = None
    infix_start: Tensor | None = None
    positions: Tensor | None = None
    fronts: Mapping[Site, Front] = field(default_factory=dict)
    masks: dict[MaskKind, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

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
        return dataclasses.replace(self, positions=shifted, masks={}), {**kwargs, "position_ids": shifted}

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
        prefixes = partial(self.bank.rows, call.site, slots, call.key.dtype)
        mask = self._mask_with_prefix(call, slots)
        front = self.fronts.get(call.site)
        if front is not None and front.holds(call.key, call.value):
            return widen(call, *front.with_front(prefixes), mask)
        return prepend(call, *prefixes(), mask)

    def _mask_with_prefix(self, call: AttentionCall, slots: Tensor) -> Tensor | None:
        """Return the widened mask, made once for all layers of a forward pass that share the text's mask."""
        kind = (self.bank.holders(call.site), call.window)
        given, made = self.masks.get(kind, (None, None))
        if given is not call.mask:
            made = join_masks(self._visible(call, slots), call.mask)
            if call.query.shape[2] == 1 and made.device.type == "cpu" and made.dtype == torch.bool and made.all():
                made = None  # SDPA is faster without; on a GPU asking would make it wait
            self.masks[kind] = (call.mask, made)
        return made

    def _visible(self, call: AttentionCall, slots: Tensor) -> Tensor:
        """[B, 1, T, P] which queries see which position of their row's prefix."""
        index = torch.arange(self.bank.width, device=slots.device)
        visible = index < self.bank.site_lengths(call.site, slots)[:, None]
        visible = visible[:, None, None].expand(-1, 1, call.query.shape[2], -1)
        if call.window is not None and self.positions is not None:
            positions = self.positions if self.layout is None else self.layout.pad(self.positions[0])
            inside = positions[:, None, :, None] - index < call.window
            visible = visible & (inside | self.bank.always_visible[slots.clamp(min=0)][:, None, None, None])
        return visible

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
        seen = is_visible(call.mask).expand(len(start), -1, call.query.shape[2], -1)
        seen = seen.gather(3, where[:, None, None].expand(-1, 1, call.query.shape[2], -1))
        visible = seen & (held[:, None] & after[:, :, None])[:, None]
        keys = torch.arange(call.key.shape[2], device=start.device)
        plain = (keys >= first[:, None]) & (keys < (first + lengths)[:, None])
        hide = (plain[:, None] & after[:, :, None])[:, None]
        mask = call.mask & ~hide if call.mask.dtype == torch.bool else call.mask.masked_fill(hide, lowest(call.mask))
        return prepend(call, key, value, join_masks(visible, mask))

    def _first_key(self, query_at: Tensor) -> Tensor:
        """[B] key index of each row's text position 0: its left padding, less what a sliding cache has dropped."""
        if self.layout is not None:
            return torch.zeros_like(query_at[:, 0])
        rows = query_at.shape[0]
        positions = self.positions.expand(rows, -1) - self._per_row(self.prompt_len, rows)[:, None]
        return (query_at - positions).amax(-1)  # padding sees earlier keys or none, so real tokens give the maximum

    def _query_index(self, call: AttentionCall) -> Tensor:
        """[B, T] key index at which each query stands: its last visible key (attention is causal here)."""
        visible = is_visible(call.mask)[:, 0]
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
