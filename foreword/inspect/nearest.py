"""The vocabulary tokens nearest to each virtual token, and what is left of the words it started from.

A nearest token always exists, so each is shown beside a control: vectors drawn at random with the vocabulary's mean and
spread, of the virtual token's own length. Only what is nearer than the control's nearest says anything (Lester et al.
2021, section 7, give nearest neighbours without one; Khashabi et al. 2022 show how little they can mean).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import PromptError
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.prompts.token_space import TokenSpace, token_space
from foreword.shapes import Float

CONTROL_DRAWS = 200


@dataclass(frozen=True)
class Neighbours:
    """A virtual token's nearest vocabulary tokens.

    Attributes:
        position: of the virtual token.
        cosine: tokens with their cosines, the largest first.
        euclid: tokens with their Euclidean distances, the smallest first.
        cosine_p: share of random vectors whose nearest token is at least as near by cosine, with the usual + 1.
        euclid_p: the same by distance.
    """

    position: int
    cosine: tuple[tuple[str, float], ...]
    euclid: tuple[tuple[str, float], ...]
    cosine_p: float
    euclid_p: float


@dataclass(frozen=True)
class Nearest:
    """All virtual tokens' neighbours.

    Attributes:
        of: what vectors were compared.
        tokens: one entry a virtual token.
        control: median and 95th percentile of the random vectors' largest cosine.
        draws: how many random vectors.
    """

    of: str
    tokens: tuple[Neighbours, ...]
    control: tuple[float, float]
    draws: int = CONTROL_DRAWS


@dataclass(frozen=True)
class Persistence:
    """What is left of the word that a virtual token started from.

    Attributes:
        position: of the virtual token.
        word: its first word.
        cosine: between the virtual token now and that word's vector.
        rank: 1 where the word is the nearest of the vocabulary, 2 where one token is nearer, ...
        best_position: the virtual token that is nearest to the word now, which need not be its own.
        best_rank: the word's rank there.
    """

    position: int
    word: str
    cosine: float
    rank: int
    best_position: int
    best_rank: int


@torch.no_grad()
def nearest_tokens(
    prompt: SoftPrompt,
    backbone: Backbone,
    count: int = 5,
    draws: int = CONTROL_DRAWS,
    generator: torch.Generator | None = None,
) -> Nearest:
    """Return each virtual token's nearest vocabulary tokens by cosine and by distance, with the control.

    Args:
        prompt: soft tokens are compared with input embeddings, a prefix's layer-0 values with those of each token.
        backbone: the frozen model.
        count: how many tokens to name.
        draws: random vectors of the control.
        generator: CPU generator of the control; None takes seed 0.

    Raises:
        PromptError: a prefix that is not at layer 0 cannot be compared with single tokens.
    """
    space = _space(prompt, backbone)
    random = _random_directions(space, draws, generator or torch.Generator().manual_seed(0))
    control = cosines(random, space.table).amax(1)
    near, far = cosines(space.ours, space.table), distances(space.ours, space.table)
    by_cosine, by_distance = _named(backbone, near, count, 1), _named(backbone, far, count, -1)
    tokens = []
    for position, vector in enumerate(space.ours):
        closest = distances(random * vector.norm(), space.table).amin(1)
        cosine_p = _share(control >= near[position].max())
        euclid_p = _share(closest <= far[position].min())
        tokens.append(Neighbours(position, by_cosine[position], by_distance[position], cosine_p, euclid_p))
    limits = torch.quantile(control, torch.tensor([0.5, 0.95], device=control.device)).tolist()
    return Nearest(space.of, tuple(tokens), (limits[0], limits[1]), draws)


@torch.no_grad()
def persistence(prompt: SoftPrompt, backbone: Backbone, words: Sequence[str] | None = None) -> tuple[Persistence, ...]:
    """Return for each virtual token that started from a word how near that word still is.

    Args:
        prompt: the trained prompt.
        backbone: the frozen model.
        words: the first words, one a position from 0; None takes the class labels or the text of the prompt's own
            initialisation, nothing where it had none.

    Raises:
        PromptError: more words than virtual tokens, a word without a token, or a prefix that is not at layer 0.
    """
    if words is None:
        started = initial_words(prompt, backbone)
    else:
        started = [(word, backbone.tokenizer(word, add_special_tokens=False).input_ids) for word in words]
    if len(started) > prompt.length:
        raise PromptError(f"{len(started)} initial words for {prompt.length} virtual tokens; give at most one each")
    if not started:
        return ()
    space = _space(prompt, backbone)
    wanted = torch.stack([_word_vector(space, word, ids) for word, ids in started])
    near, all_near = cosines(space.ours, wanted), cosines(space.ours, space.table)  # [P, words], [P, V]
    ranks = 1 + (all_near[:, None] > near[..., None] + 1e-6).sum(-1)  # a word of one token is not nearer than itself
    best = ranks.double().sub(near.double() * 1e-3).argmin(0).tolist()  # of equal ranks the larger cosine
    return tuple(
        Persistence(i, word, float(near[i, i]), int(ranks[i, i]), best[i], int(ranks[best[i], i]))
        for i, (word, _) in enumerate(started)
    )


def initial_words(prompt: SoftPrompt, backbone: Backbone) -> list[tuple[str, list[int]]]:
    """Return the words that the initialisation put at positions 0, 1, ..., with their ids, as far as the spec tells."""
    init, tokenizer = prompt.spec.init, backbone.tokenizer
    if init.name == "labels":
        labels = init.labels[: prompt.length]
        return [(label, tokenizer(label, add_special_tokens=False).input_ids) for label in labels]
    if init.name not in ("words", "activations") or not init.text:
        return []
    ids = tokenizer(" " + init.text.strip(), add_special_tokens=False).input_ids  # as `initialise` reads it
    repeated = (ids * (prompt.length // len(ids) + 1))[: prompt.length]
    return [(tokenizer.decode([i]), [i]) for i in repeated]


def cosines(ours: Float[Tensor, "P W"], table: Float[Tensor, "V W"]) -> Float[Tensor, "P V"]:
    """Return the cosine of each of our vectors with each of the table's."""
    return torch.nn.functional.normalize(ours, dim=-1) @ torch.nn.functional.normalize(table, dim=-1).T


def distances(ours: Float[Tensor, "P W"], table: Float[Tensor, "V W"]) -> Float[Tensor, "P V"]:
    """Return the Euclidean distance of each of our vectors to each of the table's."""
    return torch.cdist(ours, table)


def _space(prompt: SoftPrompt, backbone: Backbone) -> TokenSpace:
    space = token_space(prompt, backbone)
    if space is None:
        raise PromptError("the prefix is not at layer 0 of a self-attention, where its values stand for single tokens")
    return space


def _random_directions(space: TokenSpace, draws: int, generator: torch.Generator) -> Float[Tensor, "R W"]:
    """Return unit vectors drawn with the vocabulary's mean and spread in each coordinate."""
    drawn = torch.randn(draws, space.table.shape[1], generator=generator).to(space.table.device)
    drawn = drawn * space.table.std(0) + space.table.mean(0)
    return torch.nn.functional.normalize(drawn, dim=-1)


def _share(hits: Tensor) -> float:
    return (1 + int(hits.sum())) / (1 + len(hits))


def _named(
    backbone: Backbone, values: Float[Tensor, "P V"], count: int, sign: int
) -> list[tuple[tuple[str, float], ...]]:
    """Return the best tokens of each row with their values; `sign` -1 takes the smallest."""
    best = (sign * values).topk(min(count, values.shape[1]), dim=-1)
    return [
        tuple((backbone.tokenizer.decode([i]), sign * value) for i, value in zip(ids, found, strict=True))
        for ids, found in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _word_vector(space: TokenSpace, word: str, ids: Sequence[int]) -> Float[Tensor, " W"]:
    """Return the mean of a word's tokens, as the class-label initialisation takes it."""
    if not ids:
        raise PromptError(f"initial word {word!r} has no token in this vocabulary; leave it out")
    return space.table[torch.tensor(ids, device=space.table.device)].mean(0)


__all__ = [
    "Nearest",
    "Neighbours",
    "Persistence",
    "cosines",
    "distances",
    "initial_words",
    "nearest_tokens",
    "persistence",
]
