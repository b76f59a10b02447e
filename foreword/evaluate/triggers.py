"""Outputs of a model that reads trigger words: the label it finds most probable, the word it fills in, or its text."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from foreword.backbone import Backbone
from foreword.baselines.autoprompt.masked import MaskedBackbone
from foreword.baselines.autoprompt.reader import Reader, TriggerExample, fill, without_slots
from foreword.baselines.autoprompt.trigger import Trigger
from foreword.generate import generate_ids
from foreword.prompts.batch import Row

MASKED_EACH = 7
"""One token in so many is masked where a masked model's loss on plain text is taken; BERT masked 15 % of them."""


def trigger_outputs(
    backbone: Backbone,
    trigger: Trigger,
    sources: Sequence[str],
    options: Mapping[str, Any],
    batch_size: int = 32,
    tell: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Return one output a source: its label where the trigger has label words, else what the model writes.

    Args:
        backbone: the frozen model.
        trigger: words and template; one without ids leaves the slots out.
        sources: texts.
        options: of Transformers' generation, where text is generated.
        batch_size: rows in one pass.
        tell: called with the texts done and their total.
    """
    examples = trigger.examples(backbone, sources)
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    made = [""] * len(examples)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        for i, text in zip(chunk, _batch(backbone, trigger, [examples[i] for i in chunk], options), strict=True):
            made[i] = text
        if tell is not None:
            tell(start + len(chunk), len(order))
    return made


def _batch(
    backbone: Backbone, trigger: Trigger, examples: Sequence[TriggerExample], options: Mapping[str, Any]
) -> list[str]:
    reader = Reader(backbone, trigger.labels)
    if trigger.labels:
        names = list(trigger.labels)
        return [names[i] for i in reader.probabilities(examples, trigger.ids).argmax(-1).tolist()]
    decode = backbone.tokenizer.decode
    if isinstance(backbone, MaskedBackbone):
        return [decode([word]).strip() for word in reader.answers(examples, trigger.ids).argmax(-1).tolist()]
    rows = [Row(fill(example if trigger.ids else without_slots(example), trigger.ids)) for example in examples]
    return [decode(ids, skip_special_tokens=True).strip() for ids in _generated(backbone, rows, options)]


def _generated(backbone: Backbone, rows: Sequence[Row], options: Mapping[str, Any]) -> list[list[int]]:
    return generate_ids(backbone, rows, [None] * len(rows), **options)


@torch.no_grad()
def masked_text_loss(backbone: MaskedBackbone, texts: Sequence[str]) -> float:
    """Return a masked model's mean loss in nats on every seventh token of plain texts, these masked together."""
    longest = backbone.geometry.max_positions
    limits = {} if longest is None else {"truncation": True, "max_length": longest - 2}  # RoBERTa counts from 2
    losses = []
    for text in texts:
        ids = backbone.tokenizer(text, return_tensors="pt", **limits)["input_ids"].to(backbone.device)
        at = torch.arange(1, ids.shape[1] - 1, MASKED_EACH, device=ids.device)
        wanted = ids[0, at].clone()
        ids[0, at] = backbone.tokenizer.mask_token_id
        logits = backbone.model(input_ids=ids).logits[0, at].float()
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none"))
    return float(torch.cat(losses).mean())
