"""Padded batches: for `generate`, and for encoder-decoders, whose relative positions count every slot.

Decoder-only rows are padded on the left (the text's end is where generation goes on), encoder rows on the right.
Soft tokens that stand among the text (encoder prompts, suffixes, infixes) are put there as input embeddings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import PromptError
from foreword.prompts.batch import (
    IGNORED,
    Row,
    check_positions,
    embed_with_inline,
    make_injection,
    place_inline,
)
from foreword.prompts.inject import Injection
from foreword.prompts.soft_prompt import Realised


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """Inputs of one padded call.

    Attributes:
        inputs: `attention_mask` [B, T] with `input_ids` [B, T] or `inputs_embeds` [B, T, E].
        injection: to be activated around the call, or None.
        text: [B, T] bool, which places hold the row's own tokens (not padding, not soft tokens).
    """

    inputs: dict[str, Tensor]
    injection: Injection | None
    text: Tensor


def pad(
    backbone: Backbone,
    rows: Sequence[Row],
    realised: Sequence[Realised | None],
    *,
    side: str | None = None,
    new_len: int = 0,
) -> PaddedBatch:
    """Return the rows' sources as one padded batch.

    Args:
        backbone: the frozen model.
        rows: B rows; targets are not looked at.
        realised: B prompts, None for none.
        side: `left` or `right`; None takes left for decoder-only models and right for encoders.
        new_len: tokens that will be generated, for the check against the backbone's positions.

    Raises:
        PromptError: a row has no token, or prompt, text and new tokens exceed the backbone's positions.
    """
    side = side or ("right" if backbone.is_encoder_decoder else "left")
    bos = backbone.tokenizer.bos_token_id
    placed = [place_inline(row.source, r, bos, row.tail) for row, r in zip(rows, realised, strict=True)]
    for number, ((ids, _), prompt) in enumerate(zip(placed, realised, strict=True)):
        if not ids:  # only padding would be left to predict from, and that differs from batch to batch
            raise PromptError(f"row {number} has no source token to predict from; give it text or a separator")
        if backbone.is_encoder_decoder:  # a prefix takes no position there, and new tokens have the decoder's own
            check_positions(backbone, max(len(ids), new_len))
            continue
        prompt_len = prompt.prefix.length if prompt is not None and prompt.prefix is not None else 0
        check_positions(backbone, prompt_len + len(ids) + new_len)
    longest = max(len(ids) for ids, _ in placed)
    gaps = [longest - len(ids) if side == "left" else 0 for ids, _ in placed]
    pad_id = backbone.tokenizer.pad_token_id
    padded = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for number, ((ids, _), gap) in enumerate(zip(placed, gaps, strict=True)):
        padded[number, gap : gap + len(ids)] = torch.tensor(ids, dtype=torch.long)
        mask[number, gap : gap + len(ids)] = 1
    padded, mask = padded.to(backbone.device), mask.to(backbone.device)
    starts = [start for _, start in placed]
    text = mask.bool() & (padded >= 0)
    inputs = {"attention_mask": mask, **_tokens_or_embeds(backbone, padded, realised)}
    return PaddedBatch(inputs, make_injection(realised, backbone.device, inline_start=starts), text)


def pad_targets(backbone: Backbone, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Return decoder inputs, labels and source numbers of all targets of an encoder-decoder's rows.

    Returns:
        `decoder_input_ids` [R, T] (start token, then the target without its last), `labels` [R, T] with -100 where
        there is no token, and [R] the row each target belongs to.

    Raises:
        PromptError: a target is longer than the backbone's positions.
    """
    config = backbone.model.config
    start = config.decoder_start_token_id
    start = config.pad_token_id if start is None else start
    targets = [(number, target) for number, row in enumerate(rows) for target in row.targets]
    longest = max(len(target) for _, target in targets)
    check_positions(backbone, longest)
    inputs = torch.full((len(targets), longest), backbone.tokenizer.pad_token_id, dtype=torch.long)
    labels = torch.full((len(targets), longest), IGNORED, dtype=torch.long)
    for i, (_, target) in enumerate(targets):
        labels[i, : len(target)] = torch.tensor(target)
        inputs[i, : len(target)] = torch.tensor([start, *target[:-1]])
    owner = torch.tensor([number for number, _ in targets])
    return inputs.to(backbone.device), labels.to(backbone.device), owner.to(backbone.device)


def _tokens_or_embeds(backbone: Backbone, ids: Tensor, realised: Sequence[Realised | None]) -> dict[str, Tensor]:
    if any(r is not None and r.inline is not None for r in realised):
        return {"inputs_embeds": embed_with_inline(backbone, ids, realised)}
    return {"input_ids": ids}
