"""Data-to-text tasks: E2E, WebNLG 2017, DART and RNNLG, in Prefix-Tuning's input forms (RECIPES 1.3)."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from foreword.data.files import data_file, pick, read_json, read_rows
from foreword.data.records import Record, group_targets
from foreword.errors import DataError
from foreword.tasks.task import GenerationLimits, Task

# Prefix-Tuning decodes with beam 5, at most 100 new tokens, and scores an empty output as the word "Error".
TABLE_LIMITS = GenerationLimits(max_new_tokens=100, num_beams=5, empty_output="Error")

E2E_FILES = {"train": "trainset.csv", "dev": "devset.csv", "test": "testset_w_refs.csv"}
E2E_FIELDS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
RNNLG_FILES = {"train": "train.json", "dev": "valid.json", "test": "test.json"}
WEBNLG_SUBSETS = {"test_seen": True, "test_unseen": False}


def linearise_mr(mr: str) -> str:
    """Return an E2E meaning representation `name[Zizzi], eatType[pub]` as `name : Zizzi | Type : pub`.

    Fields are renamed as in Prefix-Tuning's files; values stay as the official CSV has them (Prefix-Tuning's copy
    also put spaces round punctuation, as in "£ 30").
    """
    fields = re.findall(r"([^,\[\]]+)\[([^\]]*)\]", mr)
    if not fields:
        raise DataError(f"meaning representation {mr!r} has no field of the form name[value]")
    return " | ".join(f"{E2E_FIELDS.get(name.strip(), name.strip())} : {value}" for name, value in fields)


def load_e2e(split: str) -> list[Record]:
    """Return E2E records: train one per row (42,061), dev (547) and test (630) one per distinct MR."""
    path = data_file(f"e2e/{E2E_FILES[split]}", "https://github.com/tuetschek/e2e-dataset")
    records = []
    for number, row in read_rows(path):
        mr = pick(row, "mr", f"{path} row {number}")
        records.append(Record(linearise_mr(mr), (pick(row, "ref", str(path)),), str(number), {"mr": mr}))
    return records if split == "train" else group_targets(records)


def load_webnlg(split: str) -> list[Record]:
    """Return WebNLG 2017 records, one per entry with its "good" texts; meta has category, size and seen.

    `test_seen` and `test_unseen` are the test entries whose category is, or is not, in the training set: the
    papers' S and U columns (A is `test`). An entry without a good text (six in train and dev) is left out.
    """
    file = "test" if split in WEBNLG_SUBSETS else split
    entries = _webnlg_entries(file)
    seen = {str(entry["category"]) for entry in (entries if file == "train" else _webnlg_entries("train"))}
    records = [_webnlg_record(entry, f"{file}-{n}", seen) for n, entry in enumerate(entries, start=1)]
    want = WEBNLG_SUBSETS.get(split)
    return [record for record in records if record.targets and (want is None or record.meta["seen"] == want)]


def _webnlg_entries(file: str) -> list[dict[str, Any]]:
    path = data_file(f"webnlg2017/{file}.json", "https://gitlab.com/shimorina/webnlg-dataset (release v1.4, JSON form)")
    tree = read_json(path)
    return [entry for numbered in pick(tree, "entries", str(path)) for entry in numbered.values()]


def _webnlg_record(entry: dict[str, Any], id: str, seen: set[str]) -> Record:
    triples = pick(entry, "modifiedtripleset", id)
    # The original code puts the separator in front of every triple, the first included.
    source = "".join(f" | {t['subject']} : {t['property']} : {t['object']}" for t in triples)
    good = tuple(text["lex"] for text in pick(entry, "lexicalisations", id) if text["comment"] == "good")
    category = str(entry["category"])
    return Record(source, good, id, {"category": category, "size": len(triples), "seen": category in seen})


def load_dart(split: str) -> list[Record]:
    """Return DART v1.1.1 records, one per entry, relations lower-cased; meta names the texts' origins."""
    path = data_file(f"dart/{split}.json", "https://github.com/Yale-LILY/dart, file dart-v1.1.1-full-*.json")
    return [_dart_record(entry, f"{split}-{n}") for n, entry in enumerate(read_json(path), start=1)]


def _dart_record(entry: dict[str, Any], id: str) -> Record:
    source = " | ".join(f"{s} : {relation.lower()} : {o}" for s, relation, o in pick(entry, "tripleset", id))
    notes = pick(entry, "annotations", id)
    return Record(source, tuple(note["text"] for note in notes), id, {"origins": [note["source"] for note in notes]})


def linearise_act(act: str) -> str:
    """Return an RNNLG dialogue act `inform(name='zizzi';food=thai)` as `inform | name : zizzi | food : thai`.

    A question mark before the act's name stays; a slot without a value is just its name.
    """
    match = re.fullmatch(r"(\??\w+)\((.*)\)", act.strip())
    if not match:
        raise DataError(f"dialogue act {act!r} is not of the form act(slot=value;slot)")
    return " | ".join([match[1], *_slots(match[2])])


def _slots(inside: str) -> Iterator[str]:
    for slot in re.split(r";(?=\w+(?:=|;|$))", inside) if inside else ():
        name, equals, value = slot.partition("=")
        yield f"{name} : {value.strip(chr(39))}" if equals else name


def rnnlg_loader(domain: str) -> Callable[[str], list[Record]]:
    """Return the loader of an RNNLG domain (restaurant, hotel): train one record per row, dev and test per act."""

    def load(split: str) -> list[Record]:
        path = data_file(f"rnnlg/{domain}/{RNNLG_FILES[split]}", "https://github.com/shawnwun/RNNLG")
        rows = read_json(path, comment="#")
        records = [Record(linearise_act(r[0]), (r[1],), str(n), {"act": r[0]}) for n, r in enumerate(rows, start=1)]
        return records if split == "train" else group_targets(records)

    return load


def e2e() -> Task:
    """Return the E2E NLG challenge: restaurant attributes to text."""
    return Task(
        name="e2e",
        loader=load_e2e,
        metrics=("e2e_bleu", "e2e_nist", "e2e_meteor", "e2e_rouge_l", "e2e_cider"),
        generation=TABLE_LIMITS,
        template="name : Alimentum | area : city centre | family friendly : no",
        licence="CC BY-SA 4.0 (E2E NLG challenge, Novikova et al. 2017)",
    )


def webnlg() -> Task:
    """Return WebNLG 2017: triples to text; `test_seen`, `test_unseen` and `test` are the papers' S, U and A."""
    return Task(
        name="webnlg",
        loader=load_webnlg,
        metrics=("webnlg_bleu", "webnlg_meteor", "webnlg_ter"),
        generation=TABLE_LIMITS,
        splits=("train", "dev", "test", "test_seen", "test_unseen"),
        template=" | subject : property : object | ...",
        licence="CC BY-NC-SA 4.0 (WebNLG challenge 2017, Gardent et al.)",
    )


def dart() -> Task:
    """Return DART v1.1.1: triples from tables to text.

    The official scorer reads reference files that were lower-cased and tokenised by hand; the JSON has raw text, so
    outputs and references are both normalised as WebNLG's are. `dart_bleu` and `dart_meteor` score the official files.
    """
    return Task(
        name="dart",
        loader=load_dart,
        metrics=("webnlg_bleu", "webnlg_meteor", "webnlg_ter"),
        generation=TABLE_LIMITS,
        template="subject : relation : object | ...",
        licence="MIT (DART, Nan et al. 2021)",
    )


def rnnlg(domain: str) -> Task:
    """Return the RNNLG task of a domain: dialogue act to utterance (Wen et al. 2015)."""
    return Task(
        name=f"rnnlg_{domain}",
        loader=rnnlg_loader(domain),
        metrics=("e2e_bleu", "e2e_nist", "e2e_meteor", "e2e_rouge_l", "e2e_cider"),
        generation=TABLE_LIMITS,
        template="inform | name : red door cafe | goodformeal : breakfast",
        licence="Apache-2.0 (RNNLG, Cambridge Dialogue Systems Group)",
    )
