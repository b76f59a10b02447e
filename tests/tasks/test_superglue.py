"""SuperGLUE's odd rules against cases worked by hand, and the six loaders on lines of the official form."""

import json

import pytest

from foreword.data.records import pairs
from foreword.errors import DataError
from foreword.evaluate.metrics import statistics
from foreword.evaluate.runner import evaluate_outputs
from foreword.tasks import get_task
from foreword.tasks.superglue import join_highlights, mark_pronoun


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows)


def test_boolq_and_wic_say_true_or_false(own_data):
    own_data("superglue/boolq/val.jsonl", lines({"question": "is it", "passage": "It is.", "label": True, "idx": 7}))
    own_data("superglue/wic/val.jsonl", lines(
        {"word": "run", "sentence1": "A run.", "sentence2": "To run.", "label": False, "idx": 0, "version": 1.1}
    ))
    (record,) = get_task("boolq").load("dev")
    assert (record.source, record.targets, record.id) == ("passage: It is. question: is it", ("True",), "7")
    (record,) = get_task("wic").load("dev")
    assert (record.source, record.targets) == ("sentence1: A run. sentence2: To run. word: run", ("False",))


def test_copa_names_the_choice(own_data):
    row = {"premise": "It fell.", "choice1": "It rose.", "choice2": "It broke.", "question": "effect", "label": 1}
    own_data("superglue/copa/val.jsonl", lines(row))
    (record,) = get_task("copa").load("dev")
    assert record.source == "choice1: It rose. choice2: It broke. premise: It fell. question: effect"
    assert record.targets == ("choice2",)


MULTIRC = {
    "idx": 5,
    "passage": {
        "text": "<b>Sent 1: </b>Ann ran.<br><b>Sent 2: </b>She won.",
        "questions": [
            {"question": "Who ran?", "idx": 0, "answers": [
                {"text": "Ann", "idx": 0, "label": 1}, {"text": "Bob", "idx": 1, "label": 0}]},
            {"question": "Who won?", "idx": 1, "answers": [
                {"text": "Ann", "idx": 2, "label": 1}, {"text": "Bob", "idx": 3, "label": 0},
                {"text": "She", "idx": 4, "label": 1}]},
        ],
    },
}


def test_multirc_scores_by_hand(own_data):
    own_data("superglue/multirc/val.jsonl", lines(MULTIRC))
    task = get_task("multirc")
    records = task.load("dev")
    assert records[0].source == "question: Who ran? answer: Ann paragraph: Sent 1: Ann ran. Sent 2: She won."
    assert [record.meta["score"]["group"] for record in records] == ["5-0"] * 2 + ["5-1"] * 3
    # Question 1 right, question 2 has one answer wrong. True: 3; said True: Ann, Ann = 2, both rightly: F1 = 4 / 5.
    scores = evaluate_outputs(task, records, ["True", "False", "True", "False", "False"], resamples=20)
    assert scores.metrics == {"F1a": pytest.approx(0.8), "EM": 0.5}
    # An illegal word counts as the opposite: "maybe" for a false answer is a false True. 3 right of 3 + 4: 6 / 7.
    scores = evaluate_outputs(task, records, ["True", "maybe", "True", "False", "True"], resamples=0)
    assert scores.metrics == {"F1a": pytest.approx(6 / 7), "EM": 0.5} and scores.illegal == 0.2
    # ... and for a true answer it is a missed one: F1 = 2 * 2 / (3 + 2).
    scores = evaluate_outputs(task, records, ["maybe", "False", "True", "False", "True"], resamples=0)
    assert scores.metrics == {"F1a": pytest.approx(0.8), "EM": 0.5}
    perfect = [record.targets[0] for record in records]
    assert evaluate_outputs(task, records, perfect, resamples=0).metrics == {"F1a": 1.0, "EM": 1.0}


def test_multirc_resamples_questions_not_answers(own_data):
    own_data("superglue/multirc/val.jsonl", lines(MULTIRC))
    records = get_task("multirc").load("dev")
    keys = [record.meta["score"] for record in records]
    tables, _ = statistics(("multirc",), ["True"] * 5, [r.targets for r in records], keys=keys)
    assert len(tables["multirc"].values) == 2
    with pytest.raises(DataError, match="needs meta"):
        statistics(("multirc",), ["True"], [("True",)])


def test_record_has_one_record_a_query_and_trains_on_each_answer(own_data):
    text = "Ann met Bob\n@highlight\nAnn left.\n@highlight\nBob stayed"
    row = {
        "idx": 1, "source": "x",
        "passage": {"text": text, "entities": [
            {"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 23, "end": 25}]},
        "qas": [{"query": "@placeholder left", "idx": 9, "answers": [
            {"start": 0, "end": 2, "text": "Ann"}, {"start": 23, "end": 25, "text": "Ann"},
            {"start": 8, "end": 10, "text": "The Bob"}]}],
    }
    own_data("superglue/record/train.jsonl", lines(row))
    task = get_task("record")
    (record,) = task.load("train")
    assert record.source == (
        "query: @placeholder left entities: Ann, Bob passage: Ann met Bob. Ann left. Bob stayed"
    )
    assert record.targets == ("Ann", "The Bob") and len(pairs([record])) == 2
    scores = evaluate_outputs(task, [record, record], ["bob!", "Ann Bob"], resamples=0)
    assert scores.metrics == {"F1": pytest.approx((1 + 2 / 3) / 2), "EM": 0.5}  # articles and marks aside; best answer


def test_highlights_get_a_full_stop_where_none_was():
    assert join_highlights('a "b"\n@highlight\nc?\n@highlight\nd\n@highlight\ne') == 'a "b" c? d. e'


def wsc(text, candidate, pronoun, index, label, idx=0):
    target = {"span1_text": candidate, "span1_index": 0, "span2_text": pronoun, "span2_index": index}
    return {"text": text, "target": target, "label": label, "idx": idx}


def test_wsc_marks_the_pronoun_and_trains_on_true_referents_alone(own_data):
    rows = (
        wsc("Bob saw Tim and he waved.", "Bob", "he", 4, True, 0),
        wsc("Bob saw Tim and he waved.", "Tim", "he", 4, False, 1),
    )
    own_data("superglue/wsc/train.jsonl", lines(*rows))
    own_data("superglue/wsc/val.jsonl", lines(*rows))
    task = get_task("wsc")
    assert [r.source for r in task.load("train")] == ["Bob saw Tim and *he* waved."]
    dev = task.load("dev")
    assert [r.meta["score"]["label"] for r in dev] == [True, False]
    # "Bob": the first names the candidate, rightly; the second does not name Tim, which is right too.
    assert evaluate_outputs(task, dev, ["the Bob", "Bob"], resamples=0).metrics == {"accuracy": 1.0}
    assert evaluate_outputs(task, dev, ["Tim", "Tim"], resamples=0).metrics == {"accuracy": 0.0}
    assert evaluate_outputs(task, dev, ["", ""], resamples=0).metrics == {"accuracy": 0.0}


@pytest.mark.parametrize(("said", "candidate", "named"), [
    ("fuzzy bunny", "The bunny", True), ("bunny", "his fuzzy bunny", True), ("Bob", "Bob's hat", False),
    ("bob's hat", "Bob's", True), ("cat", "dog", False), ("the", "dog", None), ("", "dog", None),
])
def test_a_referent_is_named_by_a_subset_of_its_words(said, candidate, named):
    from foreword.evaluate.metrics.answers import names_referent

    assert names_referent(said, candidate) is named


def test_a_pronoun_keeps_its_punctuation_and_a_wrong_index_is_mended():
    assert mark_pronoun('"Good for him," he said.', "him", 2, "x") == '"Good for *him*," he said.'
    assert mark_pronoun("They might want to use it , but", "it", 4, "x") == "They might want to use *it* , but"
    with pytest.raises(DataError, match="is not in"):
        mark_pronoun("No such word", "she", 0, "x")


def test_a_wrong_label_is_named(own_data):
    own_data("superglue/boolq/val.jsonl", lines({"question": "q", "passage": "p", "label": "perhaps"}))
    with pytest.raises(DataError, match="row 1: label = 'perhaps'"):
        get_task("boolq").load("dev")


@pytest.mark.parametrize(("task", "count"), [
    ("boolq", 3270), ("wic", 638), ("wsc", 104), ("copa", 100), ("multirc", 4848), ("cb", 56), ("rte", 277)
])
def test_the_public_validation_files_load_whole(public_data, task, count):
    records = get_task(task).load("dev")
    assert len(records) == count
    outputs = [record.targets[0] for record in records]
    if task == "wsc":  # naming every candidate is right where the label says so
        share = sum(record.meta["score"]["label"] for record in records) / count
        assert evaluate_outputs(get_task(task), records, outputs, resamples=0).metrics == {"accuracy": share}
    else:
        scores = evaluate_outputs(get_task(task), records, outputs, resamples=0)
        assert set(scores.metrics.values()) == {1.0}


def test_the_public_record_lines_load(public_data):
    records = get_task("record").load("train")
    assert all(target in record.source for record in records for target in record.targets)
