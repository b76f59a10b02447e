import pytest

from foreword.data.examples import FORMATS, Example, encode_source, encode_target, get_format, tokenise
from foreword.data.records import Record
from foreword.errors import ConfigError, DataError

PAPER, PLAIN, SEQ2SEQ = FORMATS["paper"], FORMATS["plain"], FORMATS["seq2seq"]


def test_paper_format_is_prefix_tunings_byte_for_byte(gpt2):
    source, target = "name : Café Adriatic | food : thai", "Café Adriatic serves thai food."
    (example,) = tokenise([Record(source, (target,))], gpt2, PAPER).examples
    end = gpt2.eos_token
    assert list(example.source_ids + example.target_ids) == gpt2(f" {source} {end} {target} {end}")["input_ids"]
    # A lone space token stands before BOS and before EOS (RECIPES 1.3).
    assert example.source_ids[-2:] == (220, 50256) and example.target_ids[-2:] == (220, 50256)


def test_paper_format_ends_the_source_with_bos_or_its_stand_in(words):
    words.bos_token_id = None
    assert encode_source(words, "a b", PAPER)[-1] == words.eos_token_id
    words.bos_token_id = 1
    assert encode_source(words, "a b", PAPER) == (10, 11, 1)


def test_plain_format_has_the_tokenizers_own_lead(words):
    assert encode_source(words, "a b", PLAIN) == (10, 11)
    words.lead = True
    assert encode_source(words, "a b", PLAIN) == (1, 10, 11)


def test_seq2seq_ends_both_sides_with_eos(words):
    (example,) = tokenise([Record("a b", ("c",))], words, SEQ2SEQ).examples
    assert (example.source_ids, example.target_ids) == ((10, 11, 2), (12, 2))
    words.lead = True  # BART puts BOS first, in the target too: `forced_bos_token_id` generates it
    assert encode_source(words, "a b", SEQ2SEQ) == (1, 10, 11, 2)
    assert encode_target(words, "c", SEQ2SEQ) == (1, 12, 2)
    assert encode_target(words, "c a b", SEQ2SEQ, max_target=2) == (1, 12, 2)
    assert encode_target(words, "c", PLAIN) == (12, 2)  # it stands in one sequence with its source


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("max_target", [None, 2, 3, 100])
def test_eos_is_a_target_in_every_row(words, name, max_target):
    records = [Record("s", ("one two three four", "five")), Record("t", ("x y",))]
    rows = tokenise(records, words, FORMATS[name], max_target=max_target).examples
    assert len(rows) == 3
    assert all(row.target_ids[-1] == 2 and row.target_ids.count(2) == 1 for row in rows)
    assert all(max_target is None or len(row.target_ids) <= max_target for row in rows)


def test_truncation_is_counted_and_keeps_the_separator(words):
    records = [Record("a b c d", ("e f g", "h")), Record("a", ("i j",))]
    done = tokenise(records, words, PAPER, max_source=2, max_target=3)
    assert (done.sources_cut, done.targets_cut) == (1, 1)
    assert done.examples[0].source_ids == (10, 11, 1)
    assert done.summary() == "3 rows, 1 sources and 1 targets truncated"
    assert tokenise(records, words, PAPER, max_source=4, max_target=4).summary().endswith("0 targets truncated")


def test_targets_of_one_record_share_a_source_and_name_it(words):
    rows = tokenise([Record("a", ("b", "c"), "r")], words, PAPER).examples
    assert [row.record_id for row in rows] == ["r#0", "r#1"]
    assert rows[0].source_ids is rows[1].source_ids
    assert len(rows[0]) == len(rows[0].source_ids) + len(rows[0].target_ids)


def test_one_text_at_a_time_gives_the_same_tokens(gpt2):
    (example,) = tokenise([Record("some | source", ("a target",))], gpt2, PAPER, 3, 3).examples
    assert encode_source(gpt2, "some | source", PAPER, 3) == example.source_ids
    assert encode_target(gpt2, "a target", PAPER, 3) == example.target_ids


def test_what_cannot_be_learnt_from_is_an_error(words):
    with pytest.raises(DataError, match="empty target"):
        tokenise([Record("a", ("b",)), Record("a", (" ",), "bad")], words, PAPER)
    with pytest.raises(DataError, match="no example"):
        tokenise([], words, PAPER)
    words.eos_token_id = None
    with pytest.raises(ConfigError, match="no EOS"):
        tokenise([Record("a", ("b",))], words, PAPER)


@pytest.mark.parametrize("limits", [{"max_source": 0}, {"max_target": 1}])
def test_limits_that_leave_nothing_are_errors(words, limits):
    with pytest.raises(ConfigError, match=next(iter(limits))):
        tokenise([Record("a", ("b",))], words, PAPER, **limits)


def test_formats_by_name():
    assert get_format(None) is PAPER
    assert get_format(None, is_encoder_decoder=True) is SEQ2SEQ
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        get_format("papers")
    with pytest.raises(ConfigError, match="does not fit"):
        get_format("seq2seq")
    with pytest.raises(ConfigError, match="does not fit"):
        get_format("plain", is_encoder_decoder=True)


def test_examples_are_values():
    assert Example((1,), (2,)) == Example((1,), (2,))
