"""SQuAD, MRQA, XSUM, CNN/DailyMail and QQP on small files of exactly the published form."""

import json

import pytest

from foreword.errors import ConfigError, DataError
from foreword.evaluate.metrics import METRICS
from foreword.evaluate.runner import evaluate_outputs
from foreword.tasks import get_task, relabelled
from foreword.tasks.news import topic_of, topics
from foreword.tasks.questions import pad_punctuation

SQUAD = {"version": "1.1", "data": [{"title": "T", "paragraphs": [{"context": "It rose 3.5% in May.", "qas": [
    {"id": "q1", "question": "How much?", "answers": [
        {"answer_start": 8, "text": "3.5%"}, {"answer_start": 8, "text": "3.5% in May"},
        {"answer_start": 8, "text": "3.5%"}]}]}]}]}


def test_squad_pads_punctuation_and_trains_on_the_first_answer(own_data):
    own_data("squad/train-v1.1.json", json.dumps(SQUAD))
    own_data("squad/dev-v1.1.json", json.dumps(SQUAD))
    (train,), (dev,) = (get_task("squad").load(split) for split in ("train", "dev"))
    assert train.source == "question: How much ? context: It rose 3 . 5 % in May ."
    assert train.targets == ("3 . 5 %",) and dev.targets == ("3 . 5 %", "3 . 5 % in May") and dev.id == "q1"


@pytest.mark.parametrize(("said", "f1", "em"), [
    ("The cat!", 1.0, 1.0), ("a black cat", 2 / 3, 0.0), ("dog", 0.0, 0.0), ("", 0.0, 0.0), ("cat cat", 2 / 3, 0.0)
])
def test_squad_f1_and_em_by_hand(said, f1, em):
    assert METRICS["squad"]([said], [["cat", "elk"]]) == {"F1": pytest.approx(f1), "EM": em}


def test_punctuation_is_padded():
    assert pad_punctuation("(a-b), c's") == "( a - b ) , c ' s"


def test_mrqa_lines_have_a_header_and_marks(own_data):
    rows = [
        {"header": {"dataset": "BioASQ", "split": "dev"}},
        {"id": "", "context": "[TLE] Iron. [SEP] It binds.", "qas": [
            {"qid": "b1", "question": "What binds?", "answers": ["Iron", "iron", "Iron"], "detected_answers": []}]},
    ]
    own_data("mrqa/BioASQ.jsonl", "\n".join(map(json.dumps, rows)))
    (record,) = get_task("mrqa_bioasq").load("test")
    assert record.source == "question: What binds ? context: Iron . It binds ."
    assert record.targets == ("Iron", "iron") and record.id == "b1"


def test_xquad_english_is_squad_in_form(public_data):
    records = get_task("xquad_en").load("test")
    assert len(records) == 1190
    assert evaluate_outputs(get_task("xquad_en"), records, [r.targets[0] for r in records], resamples=0).metrics == {
        "F1": 1.0, "EM": 1.0
    }


URLS = """http://web.archive.org/web/2011/http://www.bbc.co.uk/news/world-europe-11
http://www.bbc.co.uk/news/business-12
http://www.bbc.co.uk/news/health-13
http://www.bbc.co.uk/sport/0/football/14
http://www.bbc.co.uk/sport/rugby-union/15
http://www.bbc.co.uk/news/uk-england-london-16
not an address
"""


def test_topics_come_from_the_address():
    found = topics(URLS.splitlines())
    assert found == {
        "11": ("news", "world"), "12": ("news", "business"), "13": ("news", "health"), "14": ("sport", "football"),
        "15": ("sport", "rugby"), "16": ("news", "uk"),
    }
    assert topic_of("https://www.bbc.com/news/17") == ("news", "news")
    with pytest.raises(DataError, match="names no topic"):
        topic_of("https://example.org/news/world-1")


def put_xsum(own_data):
    own_data("xsum/urls.txt", URLS)
    for split in ("train", "dev", "test"):
        rows = [{"document": f"Long {n}.", "summary": f"Short {n}.", "id": str(n)} for n in (*range(11, 17), 99)]
        own_data(f"xsum/{split}.jsonl", "\n".join(map(json.dumps, rows)))


def ids(task, split):
    return [record.id for record in get_task(task).load(split)]


def test_xsum_extrapolates_by_topic(own_data):
    put_xsum(own_data)
    assert len(ids("xsum", "test")) == 7
    assert ids("xsum_news_to_sports", "train") == ["11", "12", "13", "16"]
    assert ids("xsum_news_to_sports", "test") == ["14", "15"]
    assert ids("xsum_within_news", "dev") == ["11", "12", "16"]
    assert ids("xsum_within_news", "test") == ["13"]
    assert get_task("xsum_within_news").load("test")[0].meta == {"domain": "news", "topic": "health"}


def test_xsum_without_its_addresses_says_where_they_are(own_data):
    assert own_data("xsum/test.jsonl", json.dumps({"document": "a", "summary": "b", "id": 1})).is_file()
    with pytest.raises(DataError, match="XSum-WebArxiveUrls"):
        get_task("xsum_within_news").load("test")


def test_cnn_dm_keeps_its_lines(own_data):
    row = {"article": "Long.", "highlights": "One thing .\nAnother thing .", "id": "a1"}
    own_data("cnn_dm/test.jsonl", json.dumps(row))
    task = get_task("cnn_dm")
    (record,) = task.load("test")
    assert record.targets == ("One thing .\nAnother thing .",)
    scores = evaluate_outputs(task, [record], ["Another thing .\nOne thing ."], resamples=0).metrics
    assert scores["ROUGE-Lsum"] == 1.0 and scores["ROUGE-L"] < 1.0  # lines are matched apart, whatever their order


QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tIs it \"so\"?\tSo is it?\t1\n4\t5\t6\tcut off\n"


def test_qqp_leaves_out_rows_that_glue_cut_off(own_data):
    own_data("glue/qqp/dev.tsv", QQP)
    (record,) = get_task("qqp").load("dev")
    assert record.source == 'question1: Is it "so"? question2: So is it?' and record.targets == ("duplicate",)


def test_labels_are_remapped_between_mrpc_and_qqp(own_data):
    own_data("glue/qqp/dev.tsv", QQP)
    task = relabelled(get_task("qqp"), {"duplicate": "equivalent"})
    assert task.labels == get_task("mrpc").labels == ("not_equivalent", "equivalent")
    (record,) = task.load("dev")
    assert record.targets == ("equivalent",)  # so what a prompt learned on MRPC says is scored as it stands
    assert evaluate_outputs(task, [record], ["equivalent"], resamples=0).metrics["accuracy"] == 1.0
    with pytest.raises(ConfigError, match="turns the labels"):
        relabelled(get_task("qqp"), {"not_": ""})
    with pytest.raises(ConfigError, match="turns the labels"):
        relabelled(get_task("qqp"), {"same": "equal"})
