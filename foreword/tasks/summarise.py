"""Summarisation tasks: AESLC (mail to subject line) and DialogSum (dialogue to summary)."""

from foreword.data.files import data_file, filled, pick, read_rows
from foreword.data.records import Record
from foreword.tasks.task import GenerationLimits, Task


def load_aeslc(split: str) -> list[Record]:
    """Return AESLC records; the first target is the mail's own subject, further ones the annotators' (dev, test)."""
    path = data_file(f"aeslc/{split}.jsonl", "https://github.com/ryanzhumich/AESLC")
    records = []
    for number, row in read_rows(path):
        where = f"{str(path)!r} row {number}"
        subjects = [pick(row, "subject", where), *row.get("annotated_subjects", [])]
        mail = filled(pick(row, "email", where), where, "email")
        records.append(Record(mail, tuple(filled(s, where, "subject") for s in subjects), f"{split}-{number}"))
    return records


def load_dialogsum(split: str) -> list[Record]:
    """Return DialogSum records; test has three summaries a dialogue, train and dev one. Meta has the topics."""
    path = data_file(f"dialogsum/dialogsum.{split}.jsonl", "https://github.com/cylnlp/dialogsum")
    records = []
    for number, row in read_rows(path):
        where = f"{str(path)!r} row {number}"
        summaries = [filled(row[key], where, key) for key in sorted(row) if key.startswith("summary")]
        topics = [row[key] for key in sorted(row) if key.startswith("topic")]
        dialogue = filled(pick(row, "dialogue", where), where, "dialogue")
        records.append(Record(dialogue, tuple(summaries), str(pick(row, "fname", where)), {"topics": topics}))
    return records


def aeslc() -> Task:
    """Return AESLC: the subject line of a business mail (Zhang and Tetreault 2019)."""
    return Task(
        name="aeslc",
        loader=load_aeslc,
        metrics=("rouge",),
        generation=GenerationLimits(max_new_tokens=32, num_beams=5),
        template="the mail's body -> its subject line",
        licence="CC BY-NC-SA 4.0 (AESLC, from the Enron mails)",
        max_source=512,
        max_target=32,
    )


def dialogsum() -> Task:
    """Return DialogSum: a summary of a spoken dialogue (Chen et al. 2021)."""
    return Task(
        name="dialogsum",
        loader=load_dialogsum,
        metrics=("rouge",),
        generation=GenerationLimits(max_new_tokens=100, num_beams=5),
        template="the dialogue, a turn a line -> its summary",
        licence="CC BY-NC-SA 4.0 (DialogSum)",
        max_source=512,
        max_target=100,
    )
