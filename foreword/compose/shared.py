"""One computation of a source for all members that stand behind it.

A suffix or infix cannot change the keys and values of the text before it (law 11), so members of those kinds share
them: the source runs once, its keys and values become a prefix (law 5), and each member's row begins with its soft
tokens. Members in front of the text have nothing to share, because all that a text becomes depends on them.
"""

import dataclasses
from collections.abc import Sequence

import torch

from foreword.backbone import Backbone
from foreword.prompts.bank import PrefixKV
from foreword.prompts.batch import Row
from foreword.prompts.inject import Recorder, activate
from foreword.prompts.soft_prompt import Realised


def share_sources(
    backbone: Backbone, rows: Sequence[Row], realised: Sequence[Realised | None]
) -> tuple[list[Row], list[Realised | None]]:
    """Return rows and prompts that mean the same, with a source that several rows can share computed once.

    A source is shared by rows of a decoder-only model whose soft tokens stand behind it; where only one row has it,
    that row stays as it is.
    """
    rows, realised = list(rows), list(realised)
    if backbone.is_encoder_decoder or not backbone.geometry.sites:
        return rows, realised
    sharers: dict[tuple[int, ...], list[int]] = {}
    for number, (row, prompt) in enumerate(zip(rows, realised, strict=True)):
        if _stands_behind(prompt) and len(row.source) > row.tail:
            sharers.setdefault(row.source[: len(row.source) - row.tail], []).append(number)
    shared = {source: numbers for source, numbers in sharers.items() if len(numbers) > 1}
    read = record_sources(backbone, list(shared))
    for source, numbers in shared.items():
        for number in numbers:
            row = rows[number]
            rows[number] = dataclasses.replace(row, source=row.source[len(source) :])
            realised[number] = _behind(read[source], realised[number])
    return rows, realised


@torch.no_grad()
def record_sources(backbone: Backbone, sources: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], PrefixKV]:
    """Return each source's keys and values as a prefix, all sources in one pass of a decoder-only model."""
    if not sources:
        return {}
    longest, device = max(map(len, sources)), backbone.device
    pad_id = backbone.tokenizer.pad_token_id
    ids = torch.tensor([[*source, *[pad_id] * (longest - len(source))] for source in sources], device=device)
    mask = torch.tensor([[1] * len(source) + [0] * (longest - len(source)) for source in sources], device=device)
    recorder = Recorder()
    with activate(recorder):  # padded on the right, where a causal model's tokens do not look
        backbone.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return {
        source: PrefixKV(
            {site: (k[i, :, : len(source)], v[i, :, : len(source)]) for site, (k, v) in recorder.states.items()},
            len(source),
        )
        for i, source in enumerate(sources)
    }


def _stands_behind(prompt: Realised | None) -> bool:
    return prompt is not None and prompt.inline is not None and prompt.where in ("suffix", "infix")


def _behind(source: PrefixKV, prompt: Realised) -> Realised:
    """Return the prompt with the source's keys and values in front of it; without offsets the prefix is one object."""
    if prompt.prefix is None:
        return dataclasses.replace(prompt, prefix=source)
    prefix = dataclasses.replace(source, infix=prompt.prefix.infix, infix_length=prompt.prefix.infix_length)
    return dataclasses.replace(prompt, prefix=prefix)


__all__ = ["record_sources", "share_sources"]
