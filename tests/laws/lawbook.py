"""What the laws share: prompts of every kind, random rows, comparisons, and a naive reference for injection."""

import copy
import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foreword.backbone import Backbone
from foreword.prompts.bank import PrefixKV
from foreword.prompts.batch import Row, pack, realise_all
from foreword.prompts.inject import activate
from foreword.prompts.padded import pad, pad_targets
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.prompts.spec import PromptSpec

DECODERS = ("gpt2", "llama", "mistral", "qwen3", "gemma3", "opt", "pythia", "phi3")
ENCODER_DECODERS = ("t5", "t5_square", "bart")
FAMILIES = DECODERS + ENCODER_DECODERS
WINDOWED = ("mistral", "gemma3")
WINDOW = 32

DECODER_SPECS = {
    "prefix": PromptSpec(length=3),
    "prefix-mlp": PromptSpec(length=11, reparam="mlp", reparam_width=24),
    "prefix-layers": PromptSpec(length=5, layers=(0, 2)),
    "prefix-one-mlp": PromptSpec(length=1, layers=(1,), reparam="mlp", reparam_width=8),
    "prefix-long": PromptSpec(length=45, window="always"),
    "prefix-long-hidden": PromptSpec(length=40, window="model"),
    "prompt": PromptSpec(kind="prompt", length=4),
    "prompt-mlp": PromptSpec(kind="prompt", length=7, reparam="mlp", reparam_width=24),
    "after-bos": PromptSpec(kind="prompt", length=6, placement="after_bos"),
    "suffix": PromptSpec(kind="prompt", length=3, placement="suffix"),
    "infix": PromptSpec(kind="infix", length=2),
    "infix-mlp": PromptSpec(kind="infix", length=5, reparam="mlp", reparam_width=24),
}

SEQ2SEQ_SPECS = {
    "prefix": PromptSpec(length=3),
    "prefix-mlp": PromptSpec(length=9, reparam="mlp", reparam_width=24),
    "encoder": PromptSpec(length=5, stacks=("encoder",)),
    "decoder": PromptSpec(length=2, stacks=("decoder",), reparam="mlp", reparam_width=8),
    "cross": PromptSpec(length=7, stacks=("cross",)),
    "prefix-layers": PromptSpec(length=4, layers=(0, 2), stacks=("decoder", "cross")),
    "prompt": PromptSpec(kind="prompt", length=4),
    "prompt-mlp": PromptSpec(kind="prompt", length=6, reparam="mlp", reparam_width=24),
    "suffix": PromptSpec(kind="prompt", length=3, placement="suffix"),
    "after-bos": PromptSpec(kind="prompt", length=2, placement="after_bos"),
}


def specs(name: str) -> dict[str, PromptSpec]:
    """Return the prompt kinds that a family can take, by name."""
    return SEQ2SEQ_SPECS if name in ENCODER_DECODERS else DECODER_SPECS


@torch.no_grad()
def drawn(backbone: Backbone, spec: PromptSpec, seed: int = 0) -> SoftPrompt:
    """Return a prompt with values large enough to steer a random backbone."""
    prompt = make_prompt(spec, backbone)
    generator = torch.Generator().manual_seed(seed)
    for name, table in prompt.tables.items():
        table.draw(generator)
        std = float(backbone.model.get_input_embeddings().weight.std()) if name == "embedding" else 1.0
        values = table()
        table.set(torch.randn(values.shape, generator=generator) * std)
    return prompt.eval()


def all_prompts(backbone: Backbone, name: str) -> dict[str, SoftPrompt | None]:
    """Return one drawn prompt of every kind, and None."""
    made = {kind: drawn(backbone, spec, seed) for seed, (kind, spec) in enumerate(specs(name).items())}
    return {**made, "none": None}


def random_ids(length: int, seed: int) -> tuple[int, ...]:
    """Return ordinary token ids (no pad, bos, eos or unk)."""
    return tuple(random.Random(seed).choices(range(4, 98), k=length))


def random_rows(lengths: Sequence[int], seed: int = 0, targets: Sequence[int] = ()) -> list[Row]:
    """Return one row a length; every second row starts with BOS; `targets` are the lengths of each row's targets."""
    rows = []
    for number, length in enumerate(lengths):
        lead = (1,) if number % 2 else ()
        made = tuple((*random_ids(n - 1, seed + 500 + 10 * number + i), 2) for i, n in enumerate(targets))
        rows.append(Row((*lead, *random_ids(length, seed + number)), made))
    return rows


def difference(ours: Sequence[Tensor] | Tensor, theirs: Sequence[Tensor] | Tensor) -> float:
    """Return the largest absolute difference; for values above 1, relative to the largest of them."""
    if isinstance(ours, Tensor):
        ours, theirs = [ours], [theirs]
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape, f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}"
        assert torch.isfinite(a).all() and torch.isfinite(b).all(), "not finite"
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        worst = max(worst, (a - b).abs().max().item() / scale if a.numel() else 0.0)
    return worst


def packed_logits(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | PrefixKV | None]
) -> list[Tensor]:
    """Return [T, V] logits of each row's source through the packed path (decoder-only)."""
    batch = pack(backbone, rows, realise_all(backbone, prompts), all_positions=True)
    with activate(batch.injection):
        out = backbone.model(**batch.inputs, logits_to_keep=batch.predict_at, use_cache=False).logits[0]
    return [out[batch.row_of_label == number] for number in range(len(rows))]


def padded_logits(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | PrefixKV | None], side: str | None = None
) -> list[Tensor]:
    """Return [T, V] logits of each row's source (decoder-only) or first target through the padded path."""
    batch = pad(backbone, rows, realise_all(backbone, prompts), side=side)
    inputs = dict(batch.inputs)
    if backbone.is_encoder_decoder:
        inputs["decoder_input_ids"], labels, _ = pad_targets(backbone, rows)
    with activate(batch.injection):
        out = backbone.model(**inputs, use_cache=False).logits
    kept = labels >= 0 if backbone.is_encoder_decoder else batch.text
    return [row[mask] for row, mask in zip(out, kept, strict=True)]


def row_logits(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | PrefixKV | None]
) -> list[Tensor]:
    """Return logits by the path that training takes: packed for decoders, padded for encoder-decoders."""
    return (padded_logits if backbone.is_encoder_decoder else packed_logits)(backbone, rows, prompts)


def text_of(backbone: Backbone, ids: Sequence[int]) -> str:
    """Return the text that the tests' tokenizer reads back as `ids`."""
    text = backbone.tokenizer.decode(list(ids))
    assert tuple(backbone.tokenizer(text).input_ids) == tuple(ids)
    return text


def copy_of(backbone: Backbone) -> Backbone:
    """Return a backbone of its own, for tests that change modes of the model."""
    return dataclasses.replace(backbone, model=copy.deepcopy(backbone.model))


class Naive:
    """A second implementation of prefixes, as slow and plain as can be, to compare with.

    It runs one unpadded row on a copy of the model that never saw Foreword's attention or hooks. Every attention
    module calls `attend`, which knows its site from the order of the calls, concatenates the prefix, and computes
    softmax(q k^T) v with a mask worked out from positions alone. The K/V of prefixes come in as given. For an infix
    it computes attention twice, with plain and with offset keys and values, and takes the latter after the infix.
    """

    def __init__(self, backbone: Backbone) -> None:
        config = copy.deepcopy(backbone.model.config)
        self.name = f"naive-{id(self)}"
        ALL_ATTENTION_FUNCTIONS.register(self.name, self.attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(self.name, lambda *args, **kwargs: None)
        config._attn_implementation = "sdpa"
        self.model = type(backbone.model)(config).eval()
        self.model.load_state_dict(backbone.model.state_dict())
        for part in self.model.modules():  # up to Transformers 5.19, T5's stacks do not follow the whole
            if hasattr(part, "set_attn_implementation"):
                part.set_attn_implementation(self.name)
        self.seq2seq = backbone.is_encoder_decoder
        self.sites = list(backbone.geometry.sites)
        self.prefix = PrefixKV({}, 0)
        self.infix_at = 0
        self.order: list[tuple[str, int]] = []

    @torch.no_grad()
    def logits(
        self,
        ids: Sequence[int] | None = None,
        prefix: PrefixKV | None = None,
        *,
        embeds: Tensor | None = None,
        target: Sequence[int] | None = None,
        start: int | None = None,
        infix_at: int = 0,
    ) -> Tensor:
        """Return [T, V] logits of one row behind a prefix; for encoder-decoders those of `target`."""
        self.prefix, self.order, self.infix_at = prefix or PrefixKV({}, 0), list(self.sites), infix_at
        if self.seq2seq:  # calls come encoder first, then self and cross of each decoder layer
            layers = sorted({layer for stack, layer in self.sites if stack == "decoder"})
            encoder = [site for site in self.sites if site[0] == "encoder"]
            self.order = encoder + [(stack, layer) for layer in layers for stack in ("decoder", "cross")]
        inputs: dict[str, Any] = {"inputs_embeds": embeds[None]} if ids is None else {"input_ids": torch.tensor([ids])}
        length = embeds.shape[0] if ids is None else len(ids)
        if self.seq2seq:
            inputs["decoder_input_ids"] = torch.tensor([[start, *target[:-1]]])
        else:
            inputs["position_ids"] = torch.arange(length)[None] + self.prefix.length
        return self.model(**inputs, use_cache=False).logits[0]

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        site = self.order.pop(0)
        output = self._attend(site, module, query, key, value, options)
        if site in self.prefix.infix:
            at, end = self.infix_at, self.infix_at + self.prefix.infix_length
            key, value = key.clone(), value.clone()
            key[0, :, at:end] += self.prefix.infix[site][0]
            value[0, :, at:end] += self.prefix.infix[site][1]
            output[:, end:] = self._attend(site, module, query, key, value, options)[:, end:]
        return output, None

    def _attend(
        self, site: tuple[str, int], module: nn.Module, query: Tensor, key: Tensor, value: Tensor, options: dict
    ) -> Tensor:
        count = 0
        if site in self.prefix.states:
            prefix_key, prefix_value = (t[None].to(key.dtype) for t in self.prefix.states[site])
            count = prefix_key.shape[2]
            key, value = torch.cat([prefix_key, key], 2), torch.cat([prefix_value, value], 2)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scaling = options.get("scaling")
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if (bias := options.get("position_bias")) is not None:
            scores[..., count:] += bias
        scores = scores.masked_fill(~self._visible(site, count, query.shape[2], key.shape[2], module, options), -1e30)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous()

    def _visible(
        self, site: tuple[str, int], count: int, new_len: int, total_len: int, module: nn.Module, options: dict
    ) -> Tensor:
        """Return [T, S] bool: causal on decoders, and inside the window where the layer has one."""
        visible = torch.ones(new_len, total_len, dtype=torch.bool)
        if site[0] != "decoder":
            return visible
        window = options.get("sliding_window") or getattr(module, "sliding_window", None)
        for query in range(new_len):
            for key in range(count, total_len):
                distance = query - (key - count)
                visible[query, key] = distance >= 0 and (window is None or distance < window)
            for key in range(count):  # prefix position k and text position P + t, P the prompt's full length
                distance = self.prefix.length + query - key
                visible[query, key] = self.prefix.always_visible or window is None or distance < window
        return visible
