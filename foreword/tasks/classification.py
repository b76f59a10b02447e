"""Classification as text to text, in T5's forms (RECIPES 2.4): SST-2, MRPC, QQP, RTE and CB."""

import hashlib
from collections.abc import Callable
from typing import Any

from foreword.data.files import data_file, filled, pick, read_rows, read_text
from foreword.data.records import Record
from foreword.errors import DataError, nearest
from foreword.tasks.task import GenerationLimits, Task

# Greedy; the longest label, contradiction, is a handful of tokens. An illegal output counts as wrong (RECIPES 2.5).
LABEL_LIMITS = GenerationLimits(max_new_tokens=8)

MRPC_COLUMNS = {"sentence1": "#1 String", "sentence2": "#2 String"}
MRPC_DEV_ROWS = 408
PARAPHRASE_LABELS = ("not_equivalent", "equivalent")


def t5_source(row: dict[str, Any], columns: dict[str, str], where: str) -> str:
    """Return T5's `key: value key: value` text; `columns` maps each key, in order, to the row's column."""
    return " ".join(f"{key}: {filled(pick(row, name, where), where, name).strip()}" for key, name in columns.items())


def labelled(
    relative: str, how: str, columns: dict[str, str], label: str, words: dict[str, str], kind: str | None = None
) -> list[Record]:
    """Return the records of a labelled file; `words` maps the file's label values to label words.

    Raises:
        DataError: the file or a column is missing, or a label is not in `words`.
    """
    path = data_file(relative, how)
    records = []
    for number, row in read_rows(path, kind):
        where = f"{str(path)!r} row {number}"
        value = str(pick(row, label, where))
        if value not in words:
            raise DataError(f"{where}: {label} = {value!r} is not a label{nearest(value, words)}")
        records.append(Record(t5_source(row, columns, where), (words[value],), str(number), {"label": value}))
    return records


def load_sst2(split: str) -> list[Record]:
    """Return SST-2 records; train and dev are GLUE's train cut 90/10, test is GLUE's dev (872)."""
    words = {"0": "negative", "1": "positive"}
    return labelled(f"glue/sst2/{split}.tsv", "https://gluebenchmark.com", {"sentence": "sentence"}, "label", words)


def load_mrpc(split: str) -> list[Record]:
    """Return MRPC records; dev is 408 training rows chosen by digest (as many as GLUE's own list, not that list)."""
    file = "test" if split == "test" else "train"
    words = dict(zip("01", PARAPHRASE_LABELS, strict=True))
    relative = f"glue/mrpc/msr_paraphrase_{file}.txt"
    records = labelled(relative, "the Microsoft Research paraphrase corpus", MRPC_COLUMNS, "Quality", words, "tsv")
    if split == "test":
        return records
    order = sorted(records, key=lambda record: hashlib.sha256(record.source.encode()).hexdigest())
    dev = {record.id for record in order[:MRPC_DEV_ROWS]}
    return [record for record in records if (record.id in dev) == (split == "dev")]


def load_qqp(split: str) -> list[Record]:
    """Return QQP records from GLUE's `train.tsv` and `dev.tsv`; its test labels are not public, so dev is last."""
    path = data_file(f"glue/qqp/{split}.tsv", "https://gluebenchmark.com")
    words = {"0": "not_duplicate", "1": "duplicate"}
    header, *lines = read_text(path).rstrip("\n").split("\n")
    names, records = header.rstrip("\r").split("\t"), []
    for number, line in enumerate(lines, start=1):
        row = dict(zip(names, line.rstrip("\r").split("\t"), strict=False))
        # GLUE's own files have a few rows that were cut off or lack a question; every reader leaves them out.
        if row.get("is_duplicate") in words and row["question1"].strip() and row["question2"].strip():
            source = t5_source(row, {"question1": "question1", "question2": "question2"}, str(path))
            records.append(Record(source, (words[row["is_duplicate"]],), str(number), {"label": row["is_duplicate"]}))
    return records


def entailment_loader(name: str, labels: tuple[str, ...]) -> Callable[[str], list[Record]]:
    """Return the loader of a SuperGLUE hypothesis/premise task; its public test set has no labels, so dev is last."""
    columns = {"hypothesis": "hypothesis", "premise": "premise"}

    def load(split: str) -> list[Record]:
        file = {"train": "train", "dev": "val"}[split]
        words = {label: label for label in labels}
        return labelled(f"superglue/{name}/{file}.jsonl", "https://super.gluebenchmark.com", columns, "label", words)

    return load


def sst2() -> Task:
    """Return SST-2: the sentiment of a film-review phrase."""
    return Task(
        name="sst2",
        loader=load_sst2,
        metrics=("accuracy",),
        generation=LABEL_LIMITS,
        labels=("negative", "positive"),
        template="sentence: ... -> negative | positive",
        licence="research use (Stanford sentiment treebank, GLUE)",
    )


def mrpc() -> Task:
    """Return MRPC: are two sentences paraphrases; F1 is of `equivalent`."""
    return Task(
        name="mrpc",
        loader=load_mrpc,
        metrics=("t5_f1", "accuracy"),
        generation=LABEL_LIMITS,
        labels=PARAPHRASE_LABELS,
        template="sentence1: ... sentence2: ... -> not_equivalent | equivalent",
        licence="MSR research licence (Microsoft Research paraphrase corpus)",
    )


def qqp() -> Task:
    """Return QQP: do two questions ask the same; F1 is of `duplicate`.

    Between MRPC and QQP a grid's targets take `relabel: {equivalent: duplicate}` or the other way round.
    """
    return Task(
        name="qqp",
        loader=load_qqp,
        metrics=("t5_f1", "accuracy"),
        generation=LABEL_LIMITS,
        splits=("train", "dev"),
        labels=("not_duplicate", "duplicate"),
        template="question1: ... question2: ... -> not_duplicate | duplicate",
        licence="Quora's terms (Quora Question Pairs, GLUE)",
    )


def rte() -> Task:
    """Return RTE: does the premise entail the hypothesis."""
    labels = ("entailment", "not_entailment")
    return Task(
        name="rte",
        loader=entailment_loader("rte", labels),
        metrics=("accuracy",),
        generation=LABEL_LIMITS,
        splits=("train", "dev"),
        labels=labels,
        template="hypothesis: ... premise: ... -> entailment | not_entailment",
        licence="the task's own terms (SuperGLUE)",
    )


def cb() -> Task:
    """Return CommitmentBank: three-way entailment; macro-F1 over the three classes and accuracy."""
    labels = ("entailment", "contradiction", "neutral")
    return Task(
        name="cb",
        loader=entailment_loader("cb", labels),
        metrics=("macro_f1", "accuracy"),
        generation=LABEL_LIMITS,
        splits=("train", "dev"),
        labels=labels,
        template="hypothesis: ... premise: ... -> entailment | contradiction | neutral",
        licence="the task's own terms (SuperGLUE)",
    )
