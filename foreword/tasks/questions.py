"""Extractive questions in T5's form: SQuAD v1.1, and the six out-of-domain sets of MRQA 2019 (RECIPES 2.4, 2.5)."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from foreword.data.files import data_file, pick, read_json, read_rows
from foreword.data.records import Record
from foreword.tasks.source import hub_rows, local_file
from foreword.tasks.task import GenerationLimits, Task

# The six of the shared task's out-of-domain development data; Lester et al. train on SQuAD and score these.
MRQA_SETS = ("BioASQ", "DROP", "DuoRC", "RACE", "RelationExtraction", "TextbookQA")
SQUAD_FILES = {"train": "train-v1.1.json", "dev": "dev-v1.1.json"}
HUB_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
LIMITS = GenerationLimits(max_new_tokens=32)


def question_source(question: str, context: str) -> str:
    """Return `question: … context: …`, spaces round all punctuation as T5 has them."""
    return f"question: {pad_punctuation(question)} context: {pad_punctuation(context)}"


def pad_punctuation(text: str) -> str:
    """Return text with a space on both sides of every mark, and single spaces."""
    return " ".join(re.sub(r"(\W)", r" \1 ", text).split())


def squad_records(tree: Any, where: str) -> Iterator[Record]:
    """Yield a record a question of an official SQuAD file, its distinct answers as targets."""
    for article in pick(tree, "data", where):
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = tuple(dict.fromkeys(pad_punctuation(a["text"]) for a in question["answers"]))
                yield Record(question_source(question["question"], paragraph["context"]), answers, str(question["id"]))


def load_squad(split: str) -> list[Record]:
    """Return SQuAD v1.1 from `squad/`, else from the hub. Training takes the first answer alone, as T5 does."""
    relative, how = f"squad/{SQUAD_FILES[split]}", "https://rajpurkar.github.io/SQuAD-explorer"
    if path := local_file(relative):
        records = list(squad_records(read_json(path), str(path)))
    else:
        records = [_hub_record(row) for _, row in hub_rows(relative, how, "rajpurkar/squad", HUB_SPLITS[split])]
    return [Record(r.source, r.targets[:1], r.id) for r in records] if split == "train" else records


def _hub_record(row: dict[str, Any]) -> Record:
    answers = tuple(dict.fromkeys(map(pad_punctuation, row["answers"]["text"])))
    return Record(question_source(row["question"], row["context"]), answers, str(row["id"]))


def load_xquad(split: str) -> list[Record]:
    """Return the 1,190 English questions of XQuAD: SQuAD's own development paragraphs, 240 of them."""
    path = data_file("xquad_en/xquad.en.json", "https://github.com/google-deepmind/xquad")
    return list(squad_records(read_json(path), str(path)))


def mrqa_loader(name: str) -> Callable[[str], list[Record]]:
    """Return the loader of an MRQA set: `mrqa/NAME.jsonl` in the shared task's form, else the hub's `test` rows."""

    def load(split: str) -> list[Record]:
        relative = f"mrqa/{name}.jsonl"
        path = local_file(relative)
        if path is None:
            how = "https://github.com/mrqa/MRQA-Shared-Task-2019"
            rows = [row for _, row in hub_rows(relative, how, "mrqa-workshop/mrqa", "test") if row["subset"] == name]
            return [_mrqa_record(row["context"], row["question"], row["answers"], row["qid"]) for row in rows]
        return [record for number, row in read_rows(path) for record in mrqa_records(row, f"{path} row {number}")]

    return load


def mrqa_records(row: dict[str, Any], where: str) -> Iterator[Record]:
    """Yield the records of one line: a context with its questions; the header line has none."""
    if "header" in row:
        return
    context = pick(row, "context", where)
    for question in pick(row, "qas", where):
        yield _mrqa_record(context, question["question"], question["answers"], question["qid"])


def _mrqa_record(context: str, question: str, answers: list[str], key: str) -> Record:
    # MRQA marks breaks in its contexts: [TLE], [DOC], [PAR], [SEP].
    plain = re.sub(r"\[(?:TLE|DOC|PAR|SEP)\]", " ", context)
    known = tuple(dict.fromkeys(filter(None, map(pad_punctuation, answers))))
    return Record(question_source(question, plain), known, str(key))


def squad() -> Task:
    """Return SQuAD v1.1: the answer to a question, from a paragraph (Rajpurkar et al. 2016)."""
    return _task("squad", load_squad, ("train", "dev"), "CC BY-SA 4.0 (SQuAD v1.1)")


def xquad_en() -> Task:
    """Return XQuAD's English part as a test set for what was learned on SQuAD (Artetxe et al. 2020)."""
    return _task("xquad_en", load_xquad, ("test",), "CC BY-SA 4.0 (XQuAD)")


def mrqa(name: str) -> Task:
    """Return one out-of-domain set of MRQA 2019 (Fisch et al.); it is only tested on."""
    return _task(f"mrqa_{name.lower()}", mrqa_loader(name), ("test",), "each set's own terms (MRQA 2019)")


def _task(name: str, load: Callable[[str], list[Record]], splits: tuple[str, ...], licence: str) -> Task:
    return Task(
        name=name, loader=load, metrics=("squad",), generation=LIMITS, splits=splits,
        template="question: ... context: ... -> the answer", licence=licence, max_source=512,
    )
