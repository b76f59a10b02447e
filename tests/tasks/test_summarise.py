import json

import pytest

from foreword.data.records import pairs
from foreword.errors import DataError
from foreword.tasks import get_task


def test_aeslc_has_the_own_subject_first(own_data):
    row = {"email": "Body.\nMore.", "subject": "Own", "annotated_subjects": ["one", "two"]}
    own_data("aeslc/test.jsonl", json.dumps(row))
    (record,) = get_task("aeslc").load("test")
    assert (record.source, record.targets) == ("Body.\nMore.", ("Own", "one", "two"))


def test_dialogsum_has_one_or_three_summaries(own_data):
    base = {"fname": "d_0", "dialogue": "#Person1#: Hi."}
    own_data("dialogsum/dialogsum.train.jsonl", json.dumps(base | {"summary": "S.", "topic": "t"}))
    three = {f"summary{k}": f"S{k}." for k in (1, 2, 3)} | {f"topic{k}": f"t{k}" for k in (1, 2, 3)}
    own_data("dialogsum/dialogsum.test.jsonl", json.dumps(base | three))
    train, test = (get_task("dialogsum").load(split)[0] for split in ("train", "test"))
    assert (train.targets, train.id, train.meta) == (("S.",), "d_0", {"topics": ["t"]})
    assert test.targets == ("S1.", "S2.", "S3.")


def test_an_empty_mail_is_an_error(own_data):
    own_data("aeslc/dev.jsonl", json.dumps({"email": " ", "subject": "x"}))
    with pytest.raises(DataError, match="row 1: field 'email' is empty"):
        get_task("aeslc").load("dev")


@pytest.mark.parametrize(
    ("name", "split", "sizes"),
    [("aeslc", "train", (14436, 14436)), ("aeslc", "dev", (1960, 7840)), ("aeslc", "test", (1906, 7624)),
     ("dialogsum", "dev", (500, 500)), ("dialogsum", "test", (500, 1500))],
)  # fmt: skip
def test_real_sizes(public_data, name, split, sizes):
    records = get_task(name).load(split)
    assert (len(records), len(pairs(records))) == sizes
