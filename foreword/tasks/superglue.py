"""The six SuperGLUE tasks with rules of their own, in T5's forms (RECIPES 2.4); RTE and CB are plain classification.

The public test sets have no labels, so `dev` is the official validation file, which the papers report.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from foreword.data.files import data_file, filled, pick, read_rows
from foreword.data.records import Record
from foreword.errors import DataError
from foreword.tasks.classification import LABEL_LIMITS, t5_source
from foreword.tasks.task import GenerationLimits, Task

HOW = "https://super.gluebenchmark.com"
FILES = {"train": "train", "dev": "val"}
SPLITS = ("train", "dev")
TRUTH = ("False", "True")
LICENCE = "the task's own terms (SuperGLUE, Wang et al. 2019)"
# An entity or a referent may be several words.
ANSWER_LIMITS = GenerationLimits(max_new_tokens=32)

Convert = Callable[[dict[str, Any], str], Iterator[Record]]


def loader(name: str, convert: Convert) -> Callable[[str], list[Record]]:
    """Return the loader of a task from the official files; `convert` makes the records of one line."""

    def load(split: str) -> list[Record]:
        path = data_file(f"superglue/{name}/{FILES[split]}.jsonl", HOW)
        rows = ((row, f"{str(path)!r} row {number}") for number, row in read_rows(path))
        return [record for row, where in rows for record in convert(row, where)]

    return load


def _truth(row: dict[str, Any], where: str) -> str:
    """Return `True` or `False`; files write labels as true, 1 or "true"."""
    value = str(pick(row, "label", where)).lower()
    if value not in ("true", "false", "0", "1"):
        raise DataError(f"{where}: label = {row['label']!r} is neither true nor false")
    return TRUTH[value in ("true", "1")]


def boolq_records(row: dict[str, Any], where: str) -> Iterator[Record]:
    """Yield `passage: … question: …` → True | False."""
    source = t5_source(row, {"passage": "passage", "question": "question"}, where)
    yield Record(source, (_truth(row, where),), str(row.get("idx", where)))


def copa_records(row: dict[str, Any], where: str) -> Iterator[Record]:
    """Yield `choice1: … choice2: … premise: … question: cause` → choice1 | choice2."""
    source = t5_source(row, {key: key for key in ("choice1", "choice2", "premise", "question")}, where)
    yield Record(source, (("choice1", "choice2")[int(pick(row, "label", where))],), str(row.get("idx", where)))


def wic_records(row: dict[str, Any], where: str) -> Iterator[Record]:
    """Yield `sentence1: … sentence2: … word: …` → True | False; where the word stands is not told."""
    source = t5_source(row, {key: key for key in ("sentence1", "sentence2", "word")}, where)
    yield Record(source, (_truth(row, where),), str(row.get("idx", where)))


def multirc_records(row: dict[str, Any], where: str) -> Iterator[Record]:
    """Yield one record an answer, `question: … answer: … paragraph: …`; answers of a question share a group."""
    passage = pick(row, "passage", where)
    paragraph = _without_marks(pick(passage, "text", where))
    for question in pick(passage, "questions", where):
        group = f"{row['idx']}-{question['idx']}"
        asked = _without_marks(question["question"])
        for answer in question["answers"]:
            source = f"question: {asked} answer: {_without_marks(answer['text'])} paragraph: {paragraph}"
            target = _truth(answer, where)
            yield Record(source, (target,), f"{group}-{answer['idx']}", {"score": {"group": group}})


def _without_marks(text: str) -> str:
    """Return text with `<br>` as a space and other tags dropped."""
    return " ".join(re.sub(r"<(/)?b>", "", text.replace("<br>", " ")).split())


def record_records(row: dict[str, Any], where: str) -> Iterator[Record]:
    """Yield one record a query, `query: … entities: a, b passage: …`, its answers as targets: training sees each."""
    passage = pick(row, "passage", where)
    text = passage["text"]
    spans = [text[span["start"] : span["end"] + 1] for span in passage["entities"]]
    entities = ", ".join(dict.fromkeys(spans))
    joined = join_highlights(text)
    for query in pick(row, "qas", where):
        answers = tuple(dict.fromkeys(filled(a["text"], where, "answers") for a in query["answers"]))
        source = f"query: {query['query']} entities: {entities} passage: {joined}"
        yield Record(source, answers, str(query["idx"]))


def join_highlights(passage: str) -> str:
    """Return a ReCoRD passage in one line: highlights become sentences, with a full stop where none was."""
    ended = re.sub(r"(\.|\?|\!|\"|\')\n@highlight\n", r"\1 ", passage)
    return ended.replace("\n@highlight\n", ". ").replace("\n", " ")


def wsc_records(row: dict[str, Any], where: str) -> Iterator[Record]:
    """Yield the text with `*pronoun*` → the candidate referent; whether it is the referent is kept for the metric."""
    target = pick(row, "target", where)
    text = mark_pronoun(pick(row, "text", where), target["span2_text"], int(target["span2_index"]), where)
    label = _truth(row, where) == "True"
    yield Record(text, (target["span1_text"],), str(row.get("idx", where)), {"score": {"label": label}})


def mark_pronoun(text: str, pronoun: str, index: int, where: str) -> str:
    """Return the text with its `index`-th word in asterisks; where the file's index is off, the nearest such word.

    Punctuation that sticks to the word stays outside the asterisks.

    Raises:
        DataError: the pronoun is not in the text.
    """
    words = text.strip().split(" ")
    pattern = re.compile(rf"(?<!\w){re.escape(pronoun)}(?!\w)")
    found = [place for place, word in enumerate(words) if pattern.search(word)]
    if not found:
        raise DataError(f"{where}: the pronoun {pronoun!r} is not in {text!r:.80}")
    place = min(found, key=lambda place: abs(place - index))
    words[place] = pattern.sub(f"*{pronoun}*", words[place], count=1)
    return " ".join(words)


def load_wsc(split: str) -> list[Record]:
    """Return WSC records; training keeps only those whose candidate is the referent, as the target is its text."""
    records = loader("wsc", wsc_records)(split)
    return [r for r in records if r.meta["score"]["label"]] if split == "train" else records


def _task(name: str, convert: Convert, template: str, **fields: Any) -> Task:
    given = {"metrics": ("accuracy",), "generation": LABEL_LIMITS, "max_source": 512, **fields}
    return Task(
        name=name, loader=loader(name, convert), splits=SPLITS, template=template, licence=LICENCE, **given
    )


def boolq() -> Task:
    """Return BoolQ: does the passage say yes."""
    return _task("boolq", boolq_records, "passage: ... question: ... -> False | True", labels=TRUTH)


def copa() -> Task:
    """Return COPA: which choice is the cause, or the effect, of the premise."""
    template = "choice1: ... choice2: ... premise: ... question: cause -> choice1 | choice2"
    return _task("copa", copa_records, template, labels=("choice1", "choice2"))


def wic() -> Task:
    """Return WiC: is a word used in the same sense in two sentences."""
    return _task("wic", wic_records, "sentence1: ... sentence2: ... word: ... -> False | True", labels=TRUTH)


def multirc() -> Task:
    """Return MultiRC: is this an answer to the question; F1a over answers, EM over questions."""
    template = "question: ... answer: ... paragraph: ... -> False | True"
    return _task("multirc", multirc_records, template, labels=TRUTH, metrics=("multirc",))


def record() -> Task:
    """Return ReCoRD: which entity stands for @placeholder; F1 and EM, the best of the answers."""
    template = "query: ... entities: a, b passage: ... -> the entity"
    return _task("record", record_records, template, metrics=("squad",), generation=ANSWER_LIMITS)


def wsc() -> Task:
    """Return WSC: whom the marked pronoun means, written out, and scored by whether that is the candidate."""
    template = "text with *pronoun* -> the referent"
    task = _task("wsc", wsc_records, template, metrics=("wsc_referent",), generation=ANSWER_LIMITS)
    return Task(**{**vars(task), "loader": load_wsc})
