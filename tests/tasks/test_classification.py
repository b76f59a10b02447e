import json
from collections import Counter

import pytest

from foreword.errors import DataError
from foreword.tasks import get_task

MRPC_HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


def test_t5_forms(own_data):
    own_data("glue/sst2/dev.tsv", 'sentence\tlabel\na "fine" film \t1\nbad \t0\n')
    own_data("glue/mrpc/msr_paraphrase_test.txt", MRPC_HEADER + '1\t7\t8\tHe said "no.\tNo, he said.\n')
    row = {"premise": "P.", "hypothesis": "H", "label": "entailment", "idx": 0}
    own_data("superglue/rte/val.jsonl", json.dumps(row))
    own_data("superglue/cb/train.jsonl", json.dumps(row | {"label": "neutral"}))
    got = [get_task(n).load(s)[0] for n, s in (("sst2", "dev"), ("mrpc", "test"), ("rte", "dev"), ("cb", "train"))]
    assert [(r.source, r.targets) for r in got] == [
        ('sentence: a "fine" film', ("positive",)),
        ('sentence1: He said "no. sentence2: No, he said.', ("equivalent",)),
        ("hypothesis: H premise: P.", ("entailment",)),
        ("hypothesis: H premise: P.", ("neutral",)),
    ]


def test_an_unknown_label_is_an_error(own_data):
    own_data("glue/sst2/dev.tsv", "sentence\tlabel\nfine\t2\n")
    with pytest.raises(DataError, match="row 1: label = '2' is not a label; valid: 0, 1"):
        get_task("sst2").load("dev")


def test_tasks_without_public_test_labels_have_no_test_split():
    for name in ("rte", "cb"):
        with pytest.raises(DataError, match="no split 'test'"):
            get_task(name).load("test")


def test_mrpc_dev_is_a_fixed_part_of_train(own_data):
    rows = "".join(f"{n % 2}\t{n}\t{n}\tfirst {n}\tsecond {n}\n" for n in range(500))
    own_data("glue/mrpc/msr_paraphrase_train.txt", MRPC_HEADER + rows)
    train, dev = (get_task("mrpc").load(split) for split in ("train", "dev"))
    assert (len(train), len(dev)) == (92, 408)
    assert not {r.source for r in train} & {r.source for r in dev}
    assert get_task("mrpc").load("dev") == dev


@pytest.mark.parametrize(
    ("name", "split", "rows"),
    [("sst2", "train", 60614), ("sst2", "dev", 6735), ("sst2", "test", 872), ("mrpc", "train", 3668),
     ("mrpc", "dev", 408), ("mrpc", "test", 1725), ("rte", "train", 2490), ("rte", "dev", 277), ("cb", "train", 250),
     ("cb", "dev", 56)],
)  # fmt: skip
def test_real_sizes(public_data, name, split, rows):
    task = get_task(name)
    records = task.load(split)
    assert len(records) == rows
    assert set(Counter(r.targets[0] for r in records)) == set(task.labels)
