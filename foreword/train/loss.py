"""The training loss: -log p of every target token and nothing else, summed, so that a step divides once by tokens.

Decoder-only models run packed (no padding, logits at target positions only); encoder-decoders run padded. In both,
all targets of one source share one computation of it, and the loss and its gradient equal those of separate rows.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import TrainingError
from foreword.frozen import decoder_of, find_head, whole_losses
from foreword.prompts.bank import PrefixKV, take_rows
from foreword.prompts.batch import IGNORED, Row, pack, realise_all
from foreword.prompts.inject import activate
from foreword.prompts.padded import pad, pad_targets
from foreword.prompts.soft_prompt import Realised, SoftPrompt
from foreword.shapes import Float, Int


@dataclass(frozen=True, eq=False)
class TargetLoss:
    """The loss of a batch with R targets.

    Attributes:
        sum: -log p of all target tokens, in nats, differentiable.
        num_tokens: how many target tokens that is.
        per_target: [R] the sum of each target (rows in order, targets in order), differentiable.
        tokens_per_target: [R] tokens of each.
    """

    sum: Float[Tensor, ""]
    num_tokens: int
    per_target: Float[Tensor, " R"]
    tokens_per_target: Int[Tensor, " R"]


def target_loss(
    backbone: Backbone, rows: Sequence[Row], prompts: Sequence[SoftPrompt | PrefixKV | Realised | None]
) -> TargetLoss:
    """Return the loss of every target of `rows`, each row with its own prompt or none.

    Args:
        backbone: the frozen model.
        rows: B rows; each may have several targets, which share one computation of its source.
        prompts: B prompts; gradients flow to those that require them.

    Raises:
        TrainingError: no row has a target token.
        PromptError: a prompt does not fit the backbone, or a row is too long for it.
    """
    tokens = [len(target) for row in rows for target in row.targets]
    if not sum(tokens):
        raise TrainingError(f"the batch of {len(rows)} rows has no target token to learn from; give rows with targets")
    realised = realise_all(backbone, prompts)
    path = _padded if backbone.is_encoder_decoder else _packed if backbone.geometry.sites else _apart
    losses, owner = path(backbone, rows, realised)
    per_target = losses.new_zeros(len(tokens)).index_add(0, owner, losses)
    return TargetLoss(per_target.sum(), sum(tokens), per_target, torch.tensor(tokens, device=losses.device))


def _packed(
    backbone: Backbone, rows: Sequence[Row], realised: Sequence[Realised | None]
) -> tuple[Float[Tensor, " M"], Int[Tensor, " M"]]:
    """Return the loss of each target token of a decoder-only model, and the target it belongs to."""
    batch = pack(backbone, rows, realised)
    head = find_head(backbone)
    with activate(batch.injection):
        if head is None:
            keep, at = batch.predict_at.unique(return_inverse=True)  # targets of one source start at the same token
            logits = backbone.model(**batch.inputs, logits_to_keep=keep, use_cache=False).logits[0]
            return whole_losses(take_rows(logits, at), batch.labels), batch.target_of_label
        hidden = decoder_of(backbone)(**batch.inputs, use_cache=False).last_hidden_state[0]
    return head.losses(take_rows(hidden, batch.predict_at), batch.labels), batch.target_of_label


def _apart(
    backbone: Backbone, rows: Sequence[Row], realised: Sequence[Realised | None]
) -> tuple[Float[Tensor, " M"], Int[Tensor, " M"]]:
    """Return the same of a model with attention of its own (BLOOM, Mamba), where packed rows would see each other.

    Each target stands behind its source in a row of its own, padded on the right.
    """
    pairs = [(row, prompt, target) for row, prompt in zip(rows, realised, strict=True) for target in row.targets]
    read = [Row(row.source + target[:-1], tail=row.tail + len(target) - 1) for row, _, target in pairs]
    batch = pad(backbone, read, [prompt for _, prompt, _ in pairs], side="right")
    logits = backbone.model(**batch.inputs, use_cache=False).logits
    ends = batch.inputs["attention_mask"].sum(1).tolist()
    targets = [target for _, _, target in pairs]
    predicted = torch.cat([out[end - len(t) : end] for out, end, t in zip(logits, ends, targets, strict=True)])
    labels = torch.tensor([token for target in targets for token in target], device=logits.device)
    owner = torch.repeat_interleave(torch.tensor([len(target) for target in targets], device=logits.device))
    return whole_losses(predicted, labels), owner


def _padded(
    backbone: Backbone, rows: Sequence[Row], realised: Sequence[Realised | None]
) -> tuple[Float[Tensor, " M"], Int[Tensor, " M"]]:
    """Return the same of an encoder-decoder: each source is encoded once, its states repeated for its targets."""
    batch = pad(backbone, rows, realised)
    decoder_ids, labels, owner = pad_targets(backbone, rows)
    head = find_head(backbone)
    injection = batch.injection
    with activate(injection):
        # The hook that hands prompts down sits on whole models; checkpointed encoders need them handed down too.
        handed = {"foreword": injection} if injection is not None and backbone.model.foreword_hands_down else {}
        states = backbone.model.get_encoder()(**batch.inputs, **handed).last_hidden_state
    shared = None if injection is None else dataclasses.replace(injection, slots=injection.slots[owner])
    with activate(shared):
        mask = batch.inputs["attention_mask"][owner]
        decoded = _decode(backbone, decoder_ids, take_rows(states, owner), mask, head is None)
    at = labels != IGNORED
    losses = whole_losses(decoded[at], labels[at]) if head is None else head.losses(decoded[at], labels[at])
    return losses, torch.arange(len(owner), device=owner.device)[:, None].expand_as(labels)[at]


def _decode(backbone: Backbone, ids: Tensor, states: Tensor, mask: Tensor, whole: bool) -> Tensor:
    """Return logits [R, T, V] of the whole model, or hidden states [R, T, E] of its decoder."""
    if whole:
        outputs: Any = (states,)
        return backbone.model(
            encoder_outputs=outputs, attention_mask=mask, decoder_input_ids=ids, use_cache=False
        ).logits
    return decoder_of(backbone)(
        input_ids=ids, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state
