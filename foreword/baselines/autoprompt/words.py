"""Which tokens a trigger may be made of, and written words as single tokens."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from foreword.baselines.autoprompt.spec import AutoPromptSpec
from foreword.errors import ConfigError
from foreword.shapes import Bool, Tensor


def allowed_tokens(
    tokenizer: Any, vocabulary: int, spec: AutoPromptSpec, forbidden: Iterable[int] = ()
) -> Bool[Tensor, " V"]:
    """Return which ids may become trigger words.

    Never: special and added tokens, ids that the tokenizer does not know (padding of the embedding matrix), and
    `forbidden` ones (label words, which would give the answer away; RECIPES 4). As the spec says: capitalised tokens,
    and tokens that are no readable text.

    Args:
        tokenizer: any Hugging Face tokenizer.
        vocabulary: rows V of the embedding matrix.
        spec: its `skip_capitalised` and `readable`.
        forbidden: further ids to leave out.

    Raises:
        ConfigError: nothing is left.
    """
    allowed = torch.zeros(vocabulary, dtype=torch.bool)
    never = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder, *forbidden}
    ids = [index for index in range(min(vocabulary, len(tokenizer))) if index not in never]
    for index in ids:
        allowed[index] = _is_allowed(tokenizer.decode([index]), spec)
    if not allowed.any():
        raise ConfigError("no token is left to make a trigger of; set autoprompt.readable or skip_capitalised to false")
    return allowed


def _is_allowed(text: str, spec: AutoPromptSpec) -> bool:
    word = text.strip().removeprefix("##")
    if spec.skip_capitalised and word[:1].isupper():
        return False
    return not spec.readable or (bool(word) and word.isprintable() and "\ufffd" not in word)


def word_id(tokenizer: Any, word: str, where: str) -> int:
    """Return the id of a word that is one token: as the tokenizer spells it, behind a space, or alone.

    Args:
        tokenizer: any Hugging Face tokenizer.
        word: `good`, or a token in the tokenizer's own spelling (`Ġgood`, `##ly`).
        where: the configuration field, for the message.

    Raises:
        ConfigError: the word is several tokens, or none; it shows them.
    """
    for text in (f" {word}", word):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return ids[0]
    known = tokenizer.get_vocab()
    if word in known:
        return known[word]
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(f" {word}", add_special_tokens=False)["input_ids"])
    raise ConfigError(f"{where}: {word!r} is not one token of this tokenizer but {pieces}; give a word that is")


def label_ids(tokenizer: Any, labels: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, ...]]:
    """Return each label's word ids.

    Raises:
        ConfigError: a word is not one token, or stands for two labels.
    """
    found = {
        label: tuple(dict.fromkeys(word_id(tokenizer, word, f"autoprompt.labels.{label}") for word in words))
        for label, words in labels.items()
    }
    owner: dict[int, str] = {}
    for label, ids in found.items():
        for index in ids:
            if owner.setdefault(index, label) != label:
                word = tokenizer.decode([index])
                raise ConfigError(f"autoprompt.labels: {word!r} stands for {owner[index]!r} and {label!r}; keep one")
    return found


def first_trigger(tokenizer: Any, spec: AutoPromptSpec, slots: int, allowed: Bool[Tensor, " V"]) -> tuple[int, ...]:
    """Return the ids that the search starts from: the spec's words, mask tokens, or "the" (Wallace et al. 2019).

    Raises:
        ConfigError: the number of words is not the number of slots, or a word is not one token.
    """
    if spec.init:
        if len(spec.init) != slots:
            raise ConfigError(f"autoprompt.init has {len(spec.init)} words, the template {slots} [T]; make it {slots}")
        return tuple(word_id(tokenizer, word, "autoprompt.init") for word in spec.init)
    if tokenizer.mask_token_id is not None:
        return (tokenizer.mask_token_id,) * slots
    for text in (" the", "the"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and allowed[ids[0]]:
            return (ids[0],) * slots
    return (int(allowed.nonzero()[0]),) * slots
