import backbones
import pytest
import torch
from readers import bert_tokenizer

from foreword.baselines.autoprompt.rows import RowMaker, giveaways, label_names
from foreword.baselines.autoprompt.spec import AutoPromptSpec, LabelSearch
from foreword.baselines.autoprompt.template import ANSWER, SLOT, Template, Writer
from foreword.baselines.autoprompt.words import allowed_tokens, first_trigger, label_ids, word_id
from foreword.config import build
from foreword.data.examples import FORMATS, TextFormat, encode_source
from foreword.data.records import Record
from foreword.errors import ConfigError, DataError

LETTERS = backbones.tokenizer()


def ids(text):
    return LETTERS(text, add_special_tokens=False).input_ids


def test_a_decoder_reads_source_words_and_separator_in_order():
    write = Writer(LETTERS, Template("say {source} [T] so [T]", "decoder"), FORMATS["paper"]).write
    assert write("ab") == (*ids(" say ab"), SLOT, *ids(" so"), SLOT, *ids(" "), LETTERS.bos_token_id)
    first = Writer(LETTERS, Template("[T] [T] {source} [P]", "decoder"), FORMATS["plain"]).write
    assert first("ab") == (SLOT, SLOT, *ids(" ab\n"))


def test_an_encoder_gets_its_end_token():
    write = Writer(LETTERS, Template("{source} [T]", "encoder_decoder"), FORMATS["seq2seq"]).write
    assert write("ab") == (*ids("ab"), SLOT, LETTERS.eos_token_id)


def test_without_trigger_words_a_source_is_read_as_everywhere_else():
    for name in ("paper", "plain", "bare"):
        for text in ("a", "one two", "x\ny"):
            written = Writer(LETTERS, Template("{source}[T]", "decoder"), FORMATS[name]).write(text)
            plain = encode_source(LETTERS, text, FORMATS[name])
            assert tuple(token for token in written if token != SLOT) == plain


def test_a_masked_model_gets_its_own_frame():
    tokenizer = bert_tokenizer()
    written = Writer(tokenizer, Template.of(None, "masked")).write("ab")
    text = tokenizer("ab", add_special_tokens=False).input_ids
    end = tokenizer(" .", add_special_tokens=False).input_ids
    assert written == (tokenizer.cls_token_id, *text, SLOT, SLOT, SLOT, ANSWER, *end, tokenizer.sep_token_id)


def test_a_source_is_cut_and_the_words_stay():
    write = Writer(LETTERS, Template("{source} [T] z", "decoder"), TextFormat("bare"), max_source=3).write
    assert write("abcdef") == (*ids("abc"), SLOT, *ids(" z"))
    assert write("ab") == (*ids("ab"), SLOT, *ids(" z"))


def test_a_source_with_marks_in_it_is_only_text():
    write = Writer(LETTERS, Template("{source} [T]", "decoder"), TextFormat("bare")).write
    assert write("[T] {source}") == (*ids("[T] {source}"), SLOT)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{source}", "decoder", "no trigger word"),
        ("[T]", "decoder", "one {source}"),
        ("{source} [T]", "masked", "must have one .P."),
        ("{source} [P] [T]", "decoder", "only be last"),
    ],
)
def test_a_template_that_cannot_work_says_why(text, kind, message):
    with pytest.raises(ConfigError, match=message):
        Template(text, kind)


def test_words_are_single_tokens():
    assert word_id(LETTERS, "a", "x") == ids("a")[0]
    tokenizer = bert_tokenizer()
    assert word_id(tokenizer, "[MASK]", "x") == tokenizer.mask_token_id
    with pytest.raises(ConfigError, match=r"autoprompt.init: 'ab' is not one token .*\['▁', 'a', 'b'\]"):
        word_id(LETTERS, "ab", "autoprompt.init")
    assert label_ids(LETTERS, {"no": ("n", "m"), "yes": ("y",)}) == {
        "no": (ids("n")[0], ids("m")[0]), "yes": (ids("y")[0],)
    }
    with pytest.raises(ConfigError, match="'n' stands for 'no' and 'yes'"):
        label_ids(LETTERS, {"no": ("n",), "yes": ("n",)})


def test_special_label_capitalised_and_unreadable_tokens_are_no_candidates():
    label = ids("q")[0]
    allowed = allowed_tokens(LETTERS, 120, AutoPromptSpec(), {label})
    texts = {LETTERS.decode([index]) for index in allowed.nonzero()[:, 0].tolist()}
    assert {"a", "z", "7", "!"} <= texts
    assert not {"A", "Q", "q", " ", ""} & texts
    assert not any(allowed[index] for index in LETTERS.all_special_ids)
    assert not allowed[len(LETTERS) :].any()
    loose = allowed_tokens(LETTERS, 120, AutoPromptSpec(skip_capitalised=False, readable=False), {label})
    assert loose.sum() > allowed.sum() and loose[ids("A")[0]] and not loose[label]
    with pytest.raises(ConfigError, match="no token is left"):
        allowed_tokens(LETTERS, 120, AutoPromptSpec(), range(120))


def test_a_search_starts_from_masks_the_given_words_or_the():
    masked = bert_tokenizer()
    everything = torch.ones(100).bool()
    assert first_trigger(masked, AutoPromptSpec(), 2, everything) == (masked.mask_token_id,) * 2
    assert first_trigger(LETTERS, AutoPromptSpec(init=("a", "b")), 2, everything) == (ids("a")[0], ids("b")[0])
    only = torch.zeros(100).bool()
    only[40] = True
    assert first_trigger(LETTERS, AutoPromptSpec(), 3, only) == (40, 40, 40)
    with pytest.raises(ConfigError, match="has 1 words, the template 2"):
        first_trigger(LETTERS, AutoPromptSpec(init=("a",)), 2, everything)


def test_rows_want_labels_or_written_targets():
    owner = backbones.make("gpt2")
    writer = Writer(owner.tokenizer, Template("{source} [T]", "decoder"), FORMATS["plain"])
    record = Record("ab", ("no", "yes"), "7")
    labelled = RowMaker(owner, writer, ("no", "yes")).rows([record])
    assert [row.label for row in labelled] == ["no", "yes"] and giveaways(labelled, True) == set()
    written = RowMaker(owner, writer).rows([record])
    eos = owner.tokenizer.eos_token_id
    assert [row.target for row in written] == [(*ids("no"), eos), (*ids("yes"), eos)]
    assert giveaways(written, True) == {*ids("noyes"), eos} and giveaways(written, False) == set()
    with pytest.raises(DataError, match="'yes' is no label"):
        RowMaker(owner, writer, ("no",)).rows([record])


def test_labels_are_those_of_the_task():
    given = AutoPromptSpec(labels={"a": ("x",), "b": ("y",)})
    assert label_names(given, ("b", "a")) == ("b", "a") and label_names(given, ()) == ("a", "b")
    assert label_names(AutoPromptSpec(), ("a", "b")) == ()
    assert label_names(AutoPromptSpec(label_search=LabelSearch()), ("a", "b")) == ("a", "b")
    for labels, message in ((("a", "c"), "no label of the task"), (("a", "b", "c"), "no words for 'c'")):
        with pytest.raises(ConfigError, match=message):
            label_names(given, labels)
    with pytest.raises(ConfigError, match="needs a task with labels"):
        label_names(AutoPromptSpec(label_search=LabelSearch()), ())


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"candidates": 0}, "autoprompt.candidates = 0 must be positive"),
        ({"labels": {"a": ["x"], "b": ["y"]}, "label_search": {}}, "both given"),
        ({"labels": {"a": ["x"]}}, "two labels"),
        ({"score": "accuracy"}, "needs label words"),
        ({"label_search": {"words": 0}}, "label_search.words = 0"),
        ({"candidate": 3}, "did you mean 'candidates'"),
    ],
)
def test_a_spec_that_cannot_work_says_why(tree, message):
    with pytest.raises(ConfigError, match=message):
        build(AutoPromptSpec, tree)
