import dataclasses

import pytest

from foreword.data.records import Record, check_records, digest, group_targets, pairs, split_targets
from foreword.errors import DataError

RECORDS = [Record("a", ("1", "2"), "x", {"k": 1}), Record("b", ("3",), "y")]


def test_pairs_keep_every_target_in_order():
    assert pairs(RECORDS) == [("a", "1"), ("a", "2"), ("b", "3")]


def test_split_and_group_undo_each_other():
    single = split_targets(RECORDS)
    assert [(r.source, r.targets, r.id) for r in single] == [
        ("a", ("1",), "x#0"),
        ("a", ("2",), "x#1"),
        ("b", ("3",), "y"),
    ]
    assert group_targets(single) == RECORDS


def test_grouping_keeps_first_seen_order_of_scattered_sources():
    rows = [Record("b", ("1",), "1"), Record("a", ("2",), "2"), Record("b", ("3",), "3")]
    assert [(r.source, r.targets, r.id) for r in group_targets(rows)] == [("b", ("1", "3"), "1"), ("a", ("2",), "2")]


def test_digest_sees_every_part_and_the_order():
    changed = [
        dataclasses.replace(RECORDS[0], **change)
        for change in ({"source": "A"}, {"targets": ("2", "1")}, {"id": "z"}, {"meta": {"k": 2}})
    ]
    digests = {digest([first, RECORDS[1]]) for first in [RECORDS[0], *changed]} | {digest(RECORDS[::-1])}
    assert len(digests) == 6
    assert digest(RECORDS) == digest(list(RECORDS))
    assert digest([Record("a", ("b",))]) != digest([Record("a", ("b",)), Record("", ())])


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "no records"),
        ([Record("a", ("1",)), Record("b", (), "q")], "record 2 (id 'q') has no target"),
        ([Record("a", (" ",), "p")], "record 1 (id 'p') has an empty target"),
    ],
)
def test_bad_records_are_named(records, said):
    with pytest.raises(DataError) as error:
        check_records(records, "here")
    assert said in str(error.value) and "here" in str(error.value)


def test_records_are_frozen_and_hashable():
    assert len({RECORDS[0], RECORDS[0]}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECORDS[0].source = "c"
