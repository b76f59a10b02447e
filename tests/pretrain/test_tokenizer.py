from collections import Counter
from pathlib import Path

from foreword.pretrain.corpus import shuffled, split_documents
from foreword.pretrain.tokenizer import byte_lengths, load_tokenizer, sentinel_tokens


def test_specials_stand_where_t5_has_them(packed: Path):
    tokenizer = load_tokenizer(packed / "tokenizer")
    size = len(tokenizer)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 1)
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == size - 1
    assert tokenizer.convert_tokens_to_ids("<extra_id_99>") == size - 100
    assert tokenizer.convert_ids_to_tokens(list(range(size - 100, size))) == sentinel_tokens()


def test_any_text_survives_encoding(packed: Path):
    tokenizer = load_tokenizer(packed / "tokenizer")
    for text in ("name[Ärger], 1984", "  two  spaces\n\ttab", "日本 🙂 ßé", " a<|endoftext|>b"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_digit_is_a_token(packed: Path):
    tokenizer = load_tokenizer(packed / "tokenizer")
    assert tokenizer.tokenize("x1984")[-4:] == list("1984")


def test_ids_fall_with_frequency(packed: Path, corpus_root: Path):
    tokenizer = load_tokenizer(packed / "tokenizer")
    counts: Counter[int] = Counter()
    for source in ("wikipedia_en", "dialogue_sgd"):
        train, _ = split_documents(corpus_root / "corpora" / f"{source}.txt.xz")
        for document in shuffled(train, 0):
            counts.update(tokenizer(document)["input_ids"])
    early = sum(counts[i] for i in range(2, 102))
    late = sum(counts[i] for i in range(402, 502))
    assert early > 4 * late


def test_byte_lengths_add_up_to_utf8(packed: Path):
    tokenizer = load_tokenizer(packed / "tokenizer")
    lengths = byte_lengths(tokenizer)
    text = "Möwen über 12 Flüssen 日本"
    assert lengths[tokenizer(text)["input_ids"]].sum() == len(text.encode("utf-8"))
    assert lengths[0] == lengths[1] == lengths[-1] == 0
