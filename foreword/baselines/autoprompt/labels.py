"""The label-word search: a linear probe on the head's input, whose directions are read as words (RECIPES 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foreword.baselines.autoprompt.reader import Reader, TriggerExample
from foreword.baselines.autoprompt.spec import LabelSearch
from foreword.errors import ConfigError, DataError
from foreword.shapes import Bool, Float, Int


def search_labels(
    reader: Reader,
    examples: Sequence[TriggerExample],
    labels: Sequence[str],
    trigger: Sequence[int],
    spec: LabelSearch,
    allowed: Bool[Tensor, " V"],
    seed: int,
) -> dict[str, tuple[int, ...]]:
    """Return each label's word ids: the words whose output embedding the label's probe favours most over the others'.

    Args:
        reader: the frozen model; its own label words are not looked at.
        examples: training rows, each with its label.
        labels: all labels, in their order.
        trigger: what stands in the slots meanwhile (mask tokens, in the paper).
        spec: constants of the probe.
        allowed: ids that may be label words.
        seed: of the probe's first weights and the order of rows.

    Raises:
        DataError: a label that no row has.
    """
    wanted = torch.tensor([labels.index(example.label or "") for example in examples], device=reader.backbone.device)
    missing = [label for number, label in enumerate(labels) if not (wanted == number).any()]
    if missing:
        raise DataError(f"label {missing[0]!r} has no training row to search label words from; raise data.limit")
    inputs = [reader.head_inputs(examples[i : i + spec.rows], trigger) for i in range(0, len(examples), spec.rows)]
    probe = train_probe(torch.cat(inputs).float(), wanted, len(labels), spec, seed)
    words = reader.backbone.model.get_output_embeddings().weight.detach().float()
    found = rank_words(probe, words, allowed.to(words.device), spec.words)
    return {label: tuple(ids) for label, ids in zip(labels, found, strict=True)}


def train_probe(
    inputs: Float[Tensor, "N E"], labels: Int[Tensor, " N"], count: int, spec: LabelSearch, seed: int
) -> Float[Tensor, "labels E"]:
    """Return the weight of a linear layer that tells the labels apart, after `epochs` passes of Adam.

    Args:
        inputs: what the frozen head is given at the answer.
        labels: numbers of the labels.
        count: how many labels there are.
        spec: constants.
        seed: of the first weights (PyTorch's own draw for a linear layer) and the order of rows.
    """
    generator = torch.Generator().manual_seed(seed)
    width = inputs.shape[1]
    probe = nn.Linear(width, count)
    with torch.no_grad():
        for parameter in (probe.weight, probe.bias):
            parameter.uniform_(-(width**-0.5), width**-0.5, generator=generator)
    probe.to(inputs.device)
    optimiser = torch.optim.Adam(probe.parameters(), lr=spec.lr)
    for _ in range(spec.epochs):
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for rows in order.split(spec.rows):
            optimiser.zero_grad()
            nn.functional.cross_entropy(probe(inputs[rows]), labels[rows]).backward()
            optimiser.step()
    return probe.weight.detach()


def rank_words(
    probe: Float[Tensor, "labels E"], words: Float[Tensor, "V E"], allowed: Bool[Tensor, " V"], count: int
) -> list[list[int]]:
    """Return for each label the `count` words of highest softmax over labels of probe . word, best first.

    A word goes only to the label that it favours, so that no word stands for two.

    Raises:
        ConfigError: a label with too few words left.
    """
    shares = (probe @ words.T).softmax(0)
    mine = shares.argmax(0)
    found = []
    for label, row in enumerate(shares):
        candidates = row.masked_fill(~(allowed & (mine == label)), -1.0)
        top = candidates.topk(min(count, len(candidates)))
        ids = top.indices[top.values >= 0].tolist()
        if len(ids) < count:
            raise ConfigError(
                f"autoprompt.label_search.words = {count}: label number {label + 1} has {len(ids)}; lower it"
            )
        found.append(ids)
    return found
