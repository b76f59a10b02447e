"""A word tokenizer that behaves as Hugging Face's do, and the real GPT-2 one where the public data is at hand."""

import pytest

from foreword.data.files import data_folder


class WordTokenizer:
    """Ids of space-separated words, growing as words are met; `lead` puts BOS first, as Llama's does."""

    def __init__(self, bos=1, eos=2, lead=False):
        self.bos_token_id, self.eos_token_id, self.lead = bos, eos, lead
        self.words = {}

    def __call__(self, text, add_special_tokens=True, verbose=True):
        if isinstance(text, list):
            return {"input_ids": [self(t, add_special_tokens)["input_ids"] for t in text]}
        ids = [self.words.setdefault(word, 10 + len(self.words)) for word in text.split()]
        return {"input_ids": [self.bos_token_id, *ids] if self.lead and add_special_tokens else ids}


@pytest.fixture
def words():
    return WordTokenizer()


@pytest.fixture(scope="session")
def gpt2():
    folder = data_folder()
    if folder is None or not folder.is_dir():
        pytest.skip("FOREWORD_DATA: no public data here, so no GPT-2 tokenizer")
    from transformers import GPT2TokenizerFast

    files = folder / "tokenizers" / "gpt2"
    return GPT2TokenizerFast(vocab=str(files / "vocab.json"), merges=str(files / "merges.txt"))
