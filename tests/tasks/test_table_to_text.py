import json

import pytest

from foreword.data.records import pairs
from foreword.errors import DataError
from foreword.tasks import get_task
from foreword.tasks.table_to_text import linearise_act, linearise_mr


def test_e2e_lines_have_prefix_tunings_fields():
    mr = "name[The Vaults], eatType[pub], priceRange[more than £30], customer rating[5 out of 5], near[Café Adriatic]"
    line = (
        "name : The Vaults | Type : pub | price : more than £30 | customer rating : 5 out of 5 | near : Café Adriatic"
    )
    assert linearise_mr(mr) == line
    assert (
        linearise_mr("name[A], area[city centre], familyFriendly[no]")
        == "name : A | area : city centre | family friendly : no"
    )
    with pytest.raises(DataError, match="no field"):
        linearise_mr("nothing")


def test_e2e_groups_dev_and_test_by_mr_but_not_train(own_data):
    rows = 'mr,ref\n"name[A], food[x]",One.\nname[B],Two.\n"name[A], food[x]",Three.\n'
    for file in ("trainset", "devset", "testset_w_refs"):
        own_data(f"e2e/{file}.csv", rows)
    task = get_task("e2e")
    assert [r.targets for r in task.load("train")] == [("One.",), ("Two.",), ("Three.",)]
    for split in ("dev", "test"):
        assert [(r.source, r.targets) for r in task.load(split)] == [
            ("name : A | food : x", ("One.", "Three.")),
            ("name : B", ("Two.",)),
        ]


def test_a_missing_column_names_the_nearest(own_data):
    own_data("e2e/devset.csv", "mrr,ref\nname[A],One.\n")
    with pytest.raises(DataError, match=r"row 1 has no field 'mr'; did you mean 'mrr'\?"):
        get_task("e2e").load("dev")


def webnlg_file(*entries):
    def entry(category, triples, texts):
        return {
            "category": category,
            "modifiedtripleset": [dict(zip(("subject", "property", "object"), t, strict=True)) for t in triples],
            "lexicalisations": [{"lex": lex, "comment": comment} for lex, comment in texts],
        }

    return json.dumps({"entries": [{str(n): entry(*e)} for n, e in enumerate(entries, start=1)]})


def test_webnlg_separates_every_triple_and_keeps_good_texts(own_data):
    own_data("webnlg2017/train.json", webnlg_file(("City", [("a", "p", "b")], [("Good.", "good"), ("Bad.", "bad")])))
    test = [
        ("City", [("a", "p", "b"), ("c", "q", "d")], [("One.", "good")]),
        ("Artist", [("e", "r", "f")], [("Two.", "good")]),
        ("Artist", [("g", "r", "h")], [("No.", "bad")]),
    ]
    own_data("webnlg2017/test.json", webnlg_file(*test))
    task = get_task("webnlg")
    assert [(r.source, r.targets) for r in task.load("train")] == [(" | a : p : b", ("Good.",))]
    seen, unseen = task.load("test_seen"), task.load("test_unseen")
    assert [r.source for r in seen] == [" | a : p : b | c : q : d"]
    assert [r.meta for r in unseen] == [{"category": "Artist", "size": 1, "seen": False}]
    assert task.load("test") == seen + unseen


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_dart_joins_triples_and_lowers_relations(own_data, split):
    notes = [{"source": "x", "text": "One."}, {"source": "y", "text": "Two."}]
    entry = {"tripleset": [["A", "JOINED", "1973"], ["A", "LOCATION", "B"]], "annotations": notes}
    own_data(f"dart/{split}.json", json.dumps([entry]))
    (record,) = get_task("dart").load(split)
    assert (record.source, record.targets) == ("A : joined : 1973 | A : location : B", ("One.", "Two."))
    assert record.meta == {"origins": ["x", "y"]}


def test_rnnlg_acts():
    assert (
        linearise_act("inform(name='the carriage inn';dogsallowed='no')")
        == "inform | name : the carriage inn | dogsallowed : no"
    )
    assert linearise_act("?request(food)") == "?request | food"
    assert linearise_act("goodbye()") == "goodbye"
    assert linearise_act("inform(name='a;b inn';area=x)") == "inform | name : a;b inn | area : x"
    with pytest.raises(DataError, match="not of the form"):
        linearise_act("inform")


def test_rnnlg_skips_the_header_and_groups_by_act(own_data):
    rows = [["goodbye()", "bye", "b"], ["inform(a=b)", "it is b", "b"], ["goodbye()", "so long", "b"]]
    for file in ("train", "valid", "test"):
        own_data(f"rnnlg/hotel/{file}.json", "###\n#  c #\n" + json.dumps(rows))
    task = get_task("rnnlg_hotel")
    assert len(task.load("train")) == 3
    assert [r.targets for r in task.load("dev")] == [("bye", "so long"), ("it is b",)]


SIZES = {
    ("e2e", "train"): (42061, 42061),
    ("e2e", "dev"): (547, 4672),
    ("e2e", "test"): (630, 4693),
    ("webnlg", "train"): (6935, 18025),
    ("webnlg", "dev"): (871, 2258),
    ("webnlg", "test"): (1862, 4928),
    ("webnlg", "test_seen"): (971, 2495),
    ("webnlg", "test_unseen"): (891, 2433),
    ("dart", "dev"): (2768, 6980),
    ("rnnlg_restaurant", "train"): (3114, 3114),
    ("rnnlg_restaurant", "test"): (580, 1039),
    ("rnnlg_hotel", "dev"): (410, 1075),
}


@pytest.mark.parametrize(("name", "split"), SIZES)
def test_real_sizes(public_data, name, split):
    records = get_task(name).load(split)
    assert (len(records), len(pairs(records))) == SIZES[name, split]
    assert len({r.id for r in records}) == len(records)
