"""The paraphrase task made from WebNLG: which texts stand against each other, on a hand-made file and the real one."""

from collections import Counter

import pytest
from test_table_to_text import webnlg_file

from foreword.tasks import get_task
from foreword.tasks.paraphrase import _draw


def entry(triples, *texts, category="City"):
    return category, triples, [(text, "good") for text in texts]


@pytest.fixture
def small(own_data):
    def put(*entries):
        own_data("webnlg2017/train.json", webnlg_file(*entries))
        return {record.id: record for record in get_task("webnlg_paraphrase").load("train")}

    return put


def test_an_entry_with_one_text_stands_against_the_one_that_shares_most(small):
    found = small(
        entry([("a", "p", "b"), ("a", "q", "c")], "Mine."),
        entry([("x", "p", "y"), ("x", "q", "z")], "Only the properties."),
        entry([("a", "p", "b"), ("a", "r", "d")], "One triple."),
        entry([("a", "q", "c"), ("a", "p", "b")], "The same in another order."),
        entry([("a", "p", "b"), ("a", "q", "e")], "Another category.", category="Food"),
    )
    record = found["train-1"]
    assert record.source == "sentence1: Mine. sentence2: One triple."
    assert record.targets == ("not_equivalent",) and record.meta["other"] == "train-3"


def test_shared_subjects_decide_where_no_triple_is_shared(small):
    found = small(
        entry([("a", "p", "b")], "Mine."), entry([("x", "q", "y")], "Nothing."), entry([("a", "q", "c")], "My subject.")
    )
    assert found["train-1"].source == "sentence1: Mine. sentence2: My subject."


def test_the_digest_of_the_id_draws_between_two_texts_and_another_entrys(small):
    found = small(*(entry([("a", "p", str(n))], f"First {n}.", f"Second {n}.") for n in range(40)))
    for name, record in found.items():
        n = int(name.split("-")[1]) - 1
        assert record.targets == (("equivalent",) if _draw(name) % 2 else ("not_equivalent",))
        assert record.source.endswith(f"sentence2: Second {n}.") == (record.targets == ("equivalent",))
    assert len(Counter(record.targets for record in found.values())) == 2


def test_an_entry_without_another_of_its_kind_is_left_out(small):
    lone = entry([("a", "p", "b"), ("a", "q", "c")], "Alone of its size.")
    found = small(lone, entry([("a", "p", "b")], "One."), entry([("d", "p", "e")], "Another."))
    assert set(found) == {"train-2", "train-3"}


def test_counts_on_the_real_files(public_data):
    task = get_task("webnlg_paraphrase")
    counts = {split: Counter(r.targets[0] for r in task.load(split)) for split in ("train", "dev", "test")}
    assert counts == {
        "train": {"not_equivalent": 3733, "equivalent": 3202},
        "dev": {"not_equivalent": 470, "equivalent": 401},
        "test": {"not_equivalent": 1012, "equivalent": 849},
    }
    parts = [{r.id for r in task.load(split)} for split in ("test_seen", "test_unseen")]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 1861
