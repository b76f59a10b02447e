"""One byte-level BPE tokenizer for all backbones, its ids in order of frequency, T5's sentinels at the top."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from foreword.pretrain.corpus import END_OF_DOCUMENT

VOCABULARY_SIZE = 16_384
SENTINELS = 100
PAD, END = "<pad>", END_OF_DOCUMENT  # ids 0 and 1, as T5's pad and end of sequence


def sentinel_tokens() -> list[str]:
    """Return T5's sentinels from `<extra_id_99>` to `<extra_id_0>`, the order of their ids."""
    return [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))]


def train_bpe(texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> Tokenizer:
    """Return a byte-level BPE with `vocabulary_size` tokens less the specials, which are not in it yet.

    Every digit is its own token: a number is then spelt the same wherever it stands, so it can be copied.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size - 2 - SENTINELS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def order_by_frequency(tokenizer: Tokenizer, texts: Iterable[str]) -> Tokenizer:
    """Return the same BPE with its ids rewritten: pad, end of text, tokens by falling count in `texts`, sentinels.

    The first ids after the two specials are then the most common tokens, which sampled-vocabulary initialisation
    (Lester et al. 2021, section 3.2: the 5,000 most common tokens) relies on, as it does with T5's SentencePiece.
    """
    tree = json.loads(tokenizer.to_str())
    counts: Counter[int] = Counter()
    for batch in _batches(texts, 1000):
        for encoding in tokenizer.encode_batch(batch):
            counts.update(encoding.ids)
    old: dict[str, int] = tree["model"]["vocab"]
    ranked = sorted(old, key=lambda token: (-counts[old[token]], old[token]))
    order = [PAD, END, *ranked, *sentinel_tokens()]
    tree["model"]["vocab"] = {token: index for index, token in enumerate(order)}
    tree["added_tokens"] = [_special(order.index(token), token) for token in (PAD, END, *sentinel_tokens())]
    return Tokenizer.from_str(json.dumps(tree))


def _special(index: int, token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": token, **flags}


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def save_tokenizer(tokenizer: Tokenizer, folder: Path, positions: int = 1024) -> None:
    """Write a directory that `AutoTokenizer.from_pretrained` loads in Transformers 4 and 5.

    Bos and eos are both `<|endoftext|>`. Nothing is added to a text by itself: who wants an end of sequence appends it.
    """
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=positions,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(folder))
    # The class name both Transformers 4 (vLLM) and 5 know.
    path = Path(folder) / "tokenizer_config.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer saved in a directory."""
    return AutoTokenizer.from_pretrained(str(folder))


def byte_lengths(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Return int64 `[V]`: the bytes of text each token stands for; specials stand for none.

    In byte-level BPE every character of a token is one byte, so bits per byte can be computed per target token.
    """
    special = set(tokenizer.added_tokens_decoder)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return np.array([0 if i in special else len(token) for i, token in enumerate(tokens)], dtype=np.int64)
