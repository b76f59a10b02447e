"""From rows of token ids and their prompts to what the model takes: packed (training, scoring) or padded (generation).

A row is one source with no, one or several targets. In a packed batch all rows lie end to end in one row of the
model: linear layers see no padding, and attention sees each row alone. Targets that share a source attend to it and
to themselves, never to each other, and each starts at the source's end position.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import PromptError
from foreword.prompts.bank import Bank, PrefixKV, RowLayout
from foreword.prompts.inject import Injection
from foreword.prompts.soft_prompt import Realised, SoftPrompt


@dataclass(frozen=True)
class Row:
    """Token ids of one source and its targets.

    Attributes:
        source: ids before any target (with the separator, if the text format has one).
        targets: ids of each target; the last id of each is only predicted, never read.
        tail: how many ids at the source's end come after a suffix or infix (the separator).
    """

    source: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...] = ()
    tail: int = 0


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """One forward pass without padding.

    Attributes:
        inputs: keyword arguments for a decoder-only model: [1, N] ids or [1, N, E] embeddings, and positions.
        injection: to be activated around the call.
        predict_at: [M] packed indices whose logits are wanted.
        labels: [M] the token each of them predicts, -100 where the next token is not a target.
        row_of_label: [M] row of each.
        target_of_label: [M] running number of the target (rows in order, targets in order).
    """

    inputs: dict[str, Tensor]
    injection: Injection
    predict_at: Tensor
    labels: Tensor
    row_of_label: Tensor
    target_of_label: Tensor


INLINE = -1
"""Stands for a soft token's id until its embedding is put there."""

IGNORED = -100
"""The label of a position whose next token is not a target."""


@dataclass
class _Packing:
    """Lists that grow row by row: one entry a packed token, or one a label; `spans`: each row's source and targets."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    spans: list[list[range]] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    label_row: list[int] = field(default_factory=list)
    label_target: list[int] = field(default_factory=list)
    num_targets: int = 0

    def add_tokens(self, ids: Sequence[int], start: int) -> None:
        """Append one run of the last row's tokens, the first at text position `start`."""
        self.spans[-1].append(range(len(self.ids), len(self.ids) + len(ids)))
        self.ids += ids
        self.positions += range(start, start + len(ids))

    def add_labels(self, at: Sequence[int], labels: Sequence[int], row: int, target: int) -> None:
        """Append the indices whose logits are wanted and what each should predict."""
        self.at += at
        self.labels += labels
        self.label_row += [row] * len(labels)
        self.label_target += [target] * len(labels)


def realise_all(
    backbone: Backbone, prompts: Sequence[SoftPrompt | PrefixKV | Realised | None]
) -> list[Realised | None]:
    """Return each row's prompt in the form a forward pass takes; a prompt used by several rows is realised once."""
    made: dict[int, Realised] = {}
    for prompt in prompts:
        if prompt is not None and id(prompt) not in made:
            made[id(prompt)] = _realised(backbone, prompt)
    return [None if prompt is None else made[id(prompt)] for prompt in prompts]


def _realised(backbone: Backbone, prompt: SoftPrompt | PrefixKV | Realised) -> Realised:
    if isinstance(prompt, Realised):
        return prompt
    if not isinstance(prompt, PrefixKV):
        return prompt.realise(backbone)
    for states in (prompt.states, prompt.infix):
        for site, (key, value) in states.items():
            shape = backbone.geometry.sites.get(site)
            if shape is None or (key.shape[0], key.shape[2], value.shape[2]) != shape.widths:
                raise PromptError(
                    f"this prefix does not fit backbone {backbone.source!r} (at {site[0]} layer {site[1]}); use the "
                    "backbone that it was compiled for"
                )
    return Realised(prefix=prompt)


def check_tokens(backbone: Backbone, ids: Sequence[int], where: str) -> None:
    """Raise where the tokenizer gives an id for which the backbone has no embedding.

    Raises:
        PromptError: it names `where`, the token and the fix.
    """
    known = backbone.model.get_input_embeddings().weight.shape[0]
    if ids and (worst := max(ids)) >= known:
        raise PromptError(
            f"{where} has token {backbone.tokenizer.decode([worst])!r} with id {worst}, the backbone has {known} "
            "embeddings; use the model's own tokenizer, or model.resize_token_embeddings before training"
        )


def place_inline(
    source: Sequence[int], prompt: Realised | None, bos: int | None, tail: int = 0
) -> tuple[list[int], int]:
    """Return the ids with `INLINE` where soft tokens go, and the index of the first of those (-1 for none).

    A leading BOS is dropped where the prompt's prefix already begins with one.
    """
    ids = list(source)
    if prompt is None:
        return ids, -1
    starts_with_bos = bos is not None and ids[:1] == [bos]
    if prompt.inline is None:
        return (ids[1:] if prompt.prefix.includes_bos and starts_with_bos else ids), -1
    start = {"start": 0, "after_bos": int(starts_with_bos)}.get(prompt.where, len(ids) - tail)
    return ids[:start] + [INLINE] * prompt.inline.shape[0] + ids[start:], start


def make_injection(
    rows: Sequence[Realised | None],
    device: torch.device,
    layout: RowLayout | None = None,
    inline_start: Sequence[int] = (),
) -> Injection | None:
    """Return the injection for one batch, each distinct prefix stored once; None where nothing is to be injected.

    Args:
        rows: each row's prompt.
        device: where the model lives.
        layout: of a packed batch.
        inline_start: text position of each row's first soft token, -1 for none; needed where a row has an infix.
    """
    distinct = {id(r.prefix): r.prefix for r in rows if r is not None and r.prefix is not None}
    if not distinct and layout is None:
        return None
    number = {key: i for i, key in enumerate(distinct)}
    slots = [-1 if r is None or r.prefix is None else number[id(r.prefix)] for r in rows]
    starts = None
    if any(prefix.infix for prefix in distinct.values()):
        infix = [at if r is not None and r.where == "infix" else -1 for at, r in zip(inline_start, rows, strict=True)]
        starts = torch.tensor(infix, device=device)
    bank = Bank(list(distinct.values()) or [PrefixKV({}, 0)], device)
    return Injection(bank, torch.tensor(slots, device=device), layout, starts)


def embed_with_inline(backbone: Backbone, ids: Tensor, realised: Sequence[Realised | None]) -> Tensor:
    """Return embeddings [..., E] of ids, soft tokens in the places marked `INLINE`, in row order."""
    marked = ids == INLINE
    embeds = backbone.embed(ids.masked_fill(marked, 0))
    soft = [r.inline.to(embeds.dtype) for r in realised if r is not None and r.inline is not None]
    return embeds.masked_scatter(marked[..., None], torch.cat(soft))


def pack(
    backbone: Backbone, rows: Sequence[Row], realised: Sequence[Realised | None], *, all_positions: bool = False
) -> PackedBatch:
    """Return rows packed for one pass of a decoder-only model.

    Args:
        backbone: the frozen model.
        rows: B rows.
        realised: B prompts, None for none.
        all_positions: ask for the logits of every source position instead of those that predict targets.

    Raises:
        PromptError: a row has no token, text and prompt together exceed the backbone's positions, or the model's
            attention is not ours, so that packed rows would see each other.
    """
    if not backbone.geometry.sites:
        name = type(backbone.model).__name__
        raise PromptError(f"{name} does not route attention through Transformers' interface: its rows cannot be packed")
    packing, starts = _Packing(), []
    bos = backbone.tokenizer.bos_token_id
    for number, (row, prompt) in enumerate(zip(rows, realised, strict=True)):
        source, start = place_inline(row.source, prompt, bos, row.tail)
        starts.append(start)
        _pack_row(packing, number, source, row.targets, all_positions)
        prompt_len = prompt.prefix.length if prompt is not None and prompt.prefix is not None else 0
        longest = len(source) + max((len(target) - 1 for target in row.targets), default=0)
        check_positions(backbone, prompt_len + longest)
    device = backbone.device
    groups = _groups(packing.spans)
    layout = _layout(groups, packing.positions, device)
    inputs = _model_inputs(backbone, torch.tensor([packing.ids], device=device), realised)
    inputs["position_ids"] = torch.tensor([packing.positions], device=device)
    labels = (packing.at, packing.labels, packing.label_row, packing.label_target)
    tensors = [torch.tensor(values, dtype=torch.long, device=device) for values in labels]
    in_groups, group_starts = ([values[row] for row, _ in groups] for values in (realised, starts))
    return PackedBatch(inputs, make_injection(in_groups, device, layout, group_starts), *tensors)


def check_positions(backbone: Backbone, total_len: int) -> None:
    """Raise where prompt and text together are longer than the backbone's positions.

    Raises:
        PromptError: it names both lengths.
    """
    limit = backbone.geometry.max_positions
    if limit is not None and total_len > limit:
        raise PromptError(f"prompt and text take {total_len} positions, the backbone has {limit}; shorten the text")


def _model_inputs(backbone: Backbone, ids: Tensor, realised: Sequence[Realised | None]) -> dict[str, Tensor]:
    if any(r is not None and r.inline is not None for r in realised):
        return {"inputs_embeds": embed_with_inline(backbone, ids, realised)}
    return {"input_ids": ids}


def _pack_row(
    packing: _Packing, number: int, source: list[int], targets: Sequence[Sequence[int]], all_positions: bool
) -> None:
    if not source:
        raise PromptError(f"row {number} has no source token to predict from; give it text or a separator")
    first = len(packing.ids)
    packing.spans.append([])
    packing.add_tokens(source, 0)
    if all_positions:
        text = [i for i, token in enumerate(source) if token != INLINE]
        following = [*source[1:], INLINE]
        labels = [following[i] if following[i] != INLINE else IGNORED for i in text]
        packing.add_labels([first + i for i in text], labels, number, packing.num_targets)
    last = len(packing.ids) - 1
    for target in targets:
        at = len(packing.ids)
        packing.add_tokens(target[:-1], len(source))
        packing.add_labels([last, *range(at, at + len(target) - 1)], target, number, packing.num_targets)
        packing.num_targets += 1


def _groups(rows: list[list[range]]) -> list[tuple[int, list[range]]]:
    """Return what attention lays side by side, (row, its source and targets): rows, or each target with its source.

    A target has nothing to do with its neighbours, so short sources are cheaper to repeat inside attention (and there
    alone) than to have all targets of a row in one matrix of scores; for long sources it is the other way round.
    """
    whole = list(enumerate(rows))
    apart = [(row, [source, target]) for row, (source, *targets) in whole for target in targets or [range(0)]]
    return min(whole, apart, key=lambda groups: len(groups) * _longest(groups) ** 2)


def _longest(groups: list[tuple[int, list[range]]]) -> int:
    return max(sum(map(len, spans)) for _, spans in groups)


def _layout(groups: list[tuple[int, list[range]]], positions: list[int], device: torch.device) -> RowLayout:
    """Return where each group's tokens lie, padded to the longest group, and who sees whom inside a group."""
    longest, index, segments = _longest(groups), [], []
    for _, spans in groups:
        gap = longest - sum(map(len, spans))
        index.append([token for span in spans for token in span] + [0] * gap)
        segments.append([number for number, span in enumerate(spans) for _ in span] + [IGNORED] * gap)
    token_at, segment = torch.tensor(index), torch.tensor(segments)
    same = segment[:, :, None] == segment[:, None]
    shared = (segment[:, None] == 0) & (segment[:, :, None] != IGNORED)
    mask = (same | shared) & torch.ones(longest, longest, dtype=torch.bool).tril()
    mask |= torch.eye(longest, dtype=torch.bool)  # an empty place sees itself, so that softmax has something to do
    taken = (segment != IGNORED).flatten()
    place, last = taken.nonzero()[:, 0], torch.full((len(positions),), token_at.numel())
    place = last.scatter_reduce(0, token_at.flatten()[taken], place, "amin")  # of a repeated token, the first
    tensors = (place // longest, token_at, place, mask[:, None], torch.tensor(positions)[token_at])
    return RowLayout(*(tensor.to(device) for tensor in tensors))
