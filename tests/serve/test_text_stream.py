"""Text while it is made: pieces add up to the whole, characters are whole, stop strings are found across borders."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foreword.serve.text import TextStream


@pytest.fixture(scope="module")
def by_bytes():
    """A tokenizer with one token a byte, so that every character beyond ASCII spans several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*alphabet, "</s>"])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


def streamed(tokenizer, ids, stops=(), strip=False):
    stream, pieces = TextStream(tokenizer, stops, strip=strip), []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stop is not None:
            return pieces, stream.stop
    return [*pieces, stream.finish()], stream.stop


@pytest.mark.parametrize("text", ["plain words", "Grüße, 世界! 👩‍🚀 done", "a\ufffdb", "  spaced  out  ", "é" * 60])
def test_pieces_add_up_and_hold_no_half_characters(by_bytes, text):
    ids = by_bytes(text).input_ids
    pieces, stop = streamed(by_bytes, ids)
    assert "".join(pieces) == by_bytes.decode(ids, skip_special_tokens=True) == text
    assert stop is None
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_is_never_finished_comes_at_the_end(by_bytes):
    ids = by_bytes("ab世").input_ids[:-1]
    pieces, _ = streamed(by_bytes, ids)
    assert "".join(pieces) == by_bytes.decode(ids)
    assert "".join(pieces[:-1]) == "ab" and pieces[-1]


@pytest.mark.parametrize("seed", range(30))
def test_random_text_and_stops_equal_a_search_in_the_whole(by_bytes, seed):
    dice = random.Random(seed)
    text = "".join(dice.choices(["a", "b", "世", " ", "ab"], k=60))
    stops = ["".join(dice.choices("ab世 ", k=dice.randint(2, 5))) for _ in range(3)]
    pieces, stop = streamed(by_bytes, by_bytes(text).input_ids, stops)
    cut = min((text.find(s) for s in stops if s in text), default=len(text))
    assert "".join(pieces) == text[:cut]
    assert (stop is None) == (cut == len(text)) and (stop is None or text.startswith(stop, cut))


def test_what_may_become_a_stop_string_is_held_back_and_given_when_it_does_not(by_bytes):
    stream = TextStream(by_bytes, ["xyz"])
    told = [stream.push(token) for token in by_bytes("axyxyz").input_ids]
    assert told == ["a", "", "", "xy", "", ""]
    assert stream.stop == "xyz" and stream.finish() == ""
    assert "".join(streamed(by_bytes, by_bytes("axy").input_ids, ["xyz"])[0]) == "axy"


@pytest.mark.parametrize("text", ["  two words \n", "\n\n", "x ", " \t世 界\n"])
def test_white_space_around_a_formatted_answer_is_dropped(by_bytes, text):
    pieces, _ = streamed(by_bytes, by_bytes(text).input_ids, strip=True)
    assert "".join(pieces) == text.strip()


def test_a_stop_before_the_minimum_does_not_count(by_bytes):
    stream = TextStream(by_bytes, ["b"])
    told = [stream.push(token, armed=n >= 2) for n, token in enumerate(by_bytes("abab").input_ids)]
    assert told[:3] == ["a", "b", "a"] and stream.stop == "b"


def test_special_tokens_are_not_text(by_bytes):
    ids = [*by_bytes("end").input_ids, by_bytes.eos_token_id]
    assert "".join(streamed(by_bytes, ids)[0]) == "end"
