"""Attention paid to each virtual token, by layer and head: what the texts look at, as the running model computes it.

The model runs as always, with the prompt injected; only the last step of each attention is written out instead of
fused, and its weights are kept. Every kind of prompt and every stack is covered, because the weights are read where
the prompt's keys already stand before the text's.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foreword.backbone import Backbone, require_prefix
from foreword.errors import PromptError
from foreword.prompts.attention import AttentionCall, explicit_attention
from foreword.prompts.bank import Site
from foreword.prompts.batch import Row, place_inline
from foreword.prompts.inject import Active, activate
from foreword.prompts.padded import pad, pad_targets
from foreword.prompts.soft_prompt import Realised, SoftPrompt
from foreword.shapes import Float


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """The attention that text pays to a prompt, averaged over texts and over the positions that look.

    Attributes:
        weights: for each site where virtual tokens can be seen, [H, P] mean attention to each; the rest up to 1 goes
            to the text.
        queries: positions averaged in each stack.
    """

    weights: dict[Site, Float[Tensor, "H P"]]
    queries: dict[str, int]

    def by_layer(self, stack: str) -> Float[Tensor, "L P"]:
        """Return the mean over heads, one row a layer of the stack."""
        return torch.stack([weights.mean(0) for site, weights in self.weights.items() if site[0] == stack])

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks where virtual tokens can be seen."""
        return tuple(dict.fromkeys(stack for stack, _ in self.weights))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: `stack.layer` to heads by virtual tokens."""
        weights = {f"{stack}.{layer}": found.tolist() for (stack, layer), found in self.weights.items()}
        return {"weights": weights, "queries": self.queries}


@dataclass(frozen=True, eq=False)
class RowAttention:
    """The attention of one text run alone with its prompt.

    Attributes:
        weights: each site's [H, T, S] weights; S counts what is put in front first.
        columns: each site's groups of S that are virtual tokens: one [P] index, or two where an infix is seen plain
            by its own tokens and with its offset by later ones.
        queries: each stack's positions in T that look: the text's own, and of a decoder-only model those that predict
            the target where there is one.
    """

    weights: dict[Site, Float[Tensor, "H T S"]]
    columns: dict[Site, list[Tensor]]
    queries: dict[str, Tensor]

    def to_prompt(self, site: Site) -> Float[Tensor, "H Q P"]:
        """Return the looking positions' weights on each virtual token."""
        looking = self.weights[site][:, self.queries[site[0]]]
        return torch.stack([looking[..., group] for group in self.columns[site]]).sum(0)


@dataclass(frozen=True)
class _WatchedCall(AttentionCall):
    """An attention call whose weights are kept."""

    kept: dict[Site, Tensor] = field(default_factory=dict)

    def run(self) -> tuple[Tensor, Tensor | None]:
        """Return the output of attention written out, and keep its weights [B, H, T, S]."""
        call = self if self.mask is not None else self.with_explicit_mask()
        if self.bias is not None:
            call = dataclasses.replace(call, mask=call._mask_with_bias(), bias=None)
        output, weights = explicit_attention(call)
        self.kept[self.site] = weights.float()
        return output, weights


@dataclass(frozen=True, eq=False)
class _Watcher:
    """Runs another active object, or none, and keeps every attention's weights."""

    inner: Active | None
    kept: dict[Site, Tensor] = field(default_factory=dict)

    def for_forward(self, model: PreTrainedModel, kwargs: dict[str, Any]) -> tuple["_Watcher", dict[str, Any]]:
        if self.inner is None:
            return self, kwargs
        inner, kwargs = self.inner.for_forward(model, kwargs)
        return dataclasses.replace(self, inner=inner), kwargs

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        fields = {f.name: getattr(call, f.name) for f in dataclasses.fields(AttentionCall)}
        watched = _WatchedCall(**fields, kept=self.kept)
        return watched.run() if self.inner is None else self.inner.attend(watched)


def attention_map(prompt: SoftPrompt, backbone: Backbone, rows: Sequence[Row]) -> AttentionMap:
    """Return how much attention texts pay to each virtual token, by site and head.

    Args:
        prompt: any kind, on its backbone.
        backbone: the frozen model.
        rows: texts; of a row with targets, the first is read too, and the positions that predict it are those that
            look (a decoder-only model without targets: all text positions).

    Raises:
        PromptError: no row, or a model whose attention cannot be watched.
    """
    if not rows:
        raise PromptError("no text to watch attention on; give at least one")
    sums: dict[Site, Tensor] = {}
    counts: dict[str, int] = {}
    for row in rows:
        found = row_attention(prompt, backbone, row)
        for site in found.columns:
            paid = found.to_prompt(site).sum(1)
            sums[site] = sums[site] + paid if site in sums else paid
        for stack, at in found.queries.items():
            counts[stack] = counts.get(stack, 0) + len(at)
    order = [site for site in backbone.geometry.sites if site in sums]
    weights = {site: sums[site] / counts[site[0]] for site in order}
    return AttentionMap(weights, {stack: counts[stack] for stack in dict.fromkeys(stack for stack, _ in order)})


@torch.no_grad()
def row_attention(prompt: SoftPrompt, backbone: Backbone, row: Row) -> RowAttention:
    """Return all attention weights of one text that runs alone with its prompt; see `RowAttention`.

    Raises:
        PromptError: the model's attention cannot be watched, or an encoder-decoder's row without a target.
    """
    require_prefix(backbone)
    training = prompt.training
    prompt.eval()
    try:
        realised = prompt.realise(backbone)
    finally:
        prompt.train(training)
    return (_seq2seq_row if backbone.is_encoder_decoder else _decoder_row)(backbone, row, realised)


def _decoder_row(backbone: Backbone, row: Row, realised: Realised) -> RowAttention:
    read = row.targets[0][:-1] if row.targets else ()
    whole = Row(row.source + read, tail=row.tail + len(read))
    batch = pad(backbone, [whole], [realised])
    weights = _watch(backbone, batch.injection, batch.inputs)
    at = batch.text[0].nonzero()[:, 0]
    if row.targets:
        at = at[-len(row.targets[0]) :]
    start = place_inline(whole.source, realised, backbone.tokenizer.bos_token_id, whole.tail)[1]
    columns = {site: _columns(realised, site, start, weights[site].device) for site in weights}
    return RowAttention(weights, {site: found for site, found in columns.items() if found}, {"decoder": at})


def _seq2seq_row(backbone: Backbone, row: Row, realised: Realised) -> RowAttention:
    if not row.targets:
        raise PromptError("attention of an encoder-decoder is that of a source and a target; give the row a target")
    one = Row(row.source, row.targets[:1], row.tail)
    batch, (decoder_ids, _, _) = pad(backbone, [one], [realised]), pad_targets(backbone, [one])
    weights = _watch(backbone, batch.injection, {**batch.inputs, "decoder_input_ids": decoder_ids})
    start = place_inline(one.source, realised, backbone.tokenizer.bos_token_id, one.tail)[1]
    columns = {
        site: _columns(realised, site, start if site[0] != "decoder" else -1, weights[site].device) for site in weights
    }
    made = torch.arange(decoder_ids.shape[1], device=decoder_ids.device)
    queries = {"encoder": batch.text[0].nonzero()[:, 0], "decoder": made, "cross": made}
    return RowAttention(weights, {site: found for site, found in columns.items() if found}, queries)


def _watch(backbone: Backbone, injection: Active | None, inputs: dict[str, Tensor]) -> dict[Site, Tensor]:
    """Return [H, T, S] weights of each site in one pass of one row."""
    watcher = _Watcher(injection)
    with activate(watcher):
        backbone.model(**inputs, use_cache=False)
    return {site: weights[0] for site, weights in watcher.kept.items()}


def _columns(realised: Realised, site: Site, start: int, device: torch.device) -> list[Tensor]:
    """Return where the virtual tokens stand among a site's keys; empty where it sees none.

    Args:
        realised: the prompt.
        site: which attention.
        start: index of the first soft token among the text, -1 for none.
        device: of the result.
    """
    prefix, groups, before = realised.prefix, [], 0
    if prefix is not None and site in prefix.states:
        first = int(prefix.includes_bos)
        groups.append(torch.arange(first, prefix.length, device=device))
        before = prefix.length
    if prefix is not None and site in prefix.infix:
        groups.append(torch.arange(prefix.infix_length, device=device))
        before = prefix.infix_length
    if realised.inline is not None and start >= 0:
        groups.append(before + start + torch.arange(realised.inline.shape[0], device=device))
    return groups


__all__ = ["AttentionMap", "RowAttention", "attention_map", "row_attention"]
