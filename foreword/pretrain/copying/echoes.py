"""Copying tasks made from the corpora's own sentences: facts in front of a sentence, keywords, titles, repeats."""

import random
import re
from collections.abc import Iterator

from foreword.pretrain.corpus import END_OF_DOCUMENT

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'“])")
_SPEAKER = re.compile(r"^(?:Customer|Assistant): ")
_NAMES = re.compile(r"(?<=[a-z,;:] )[A-Z][\w'’-]+(?: (?:of |the |de |and )?[A-Z][\w'’-]+)*")
_NUMBERS = re.compile(r"\$?\d[\d,.:]*\d(?: ?(?:am|pm|km|kg|m|%|million|percent))?|\b\d+\b")
_QUOTES = re.compile(r"[\"“]([^\"”]{3,60})[\"”]")
_WORDS = re.compile(r"[A-Za-z][\w'’-]*")
_ARROWS = (END_OF_DOCUMENT, END_OF_DOCUMENT, f" {END_OF_DOCUMENT} ", "\n", " => ", "\nsentence: ", " || ")


def sentences(text: str, least: int = 40, most: int = 320) -> list[str]:
    """Return the sentences of a text that have `least` to `most` characters."""
    found = (_SPEAKER.sub("", s).strip() for line in text.split("\n") for s in _SENTENCE.split(line))
    return [s for s in found if least <= len(s) <= most]


def facts(sentence: str) -> dict[str, list[str]]:
    """Return the names, numbers and quotations in a sentence, in order and without repeats; empty kinds left out."""
    found = {
        "names": _NAMES.findall(sentence),
        "numbers": _NUMBERS.findall(sentence),
        "quotes": _QUOTES.findall(sentence),
    }
    return {kind: list(dict.fromkeys(values)) for kind, values in found.items() if values}


def keywords(sentence: str) -> list[str]:
    """Return the longer words of a sentence and all its capitalised ones, in order."""
    return [word for word in _WORDS.findall(sentence) if len(word) > 5 or word[0].isupper()]


def echo_documents(rng: random.Random, documents: list[str]) -> Iterator[str]:
    """Yield documents without end, each several tasks of one kind made from sentences of one corpus document."""
    while True:
        document = rng.choice(documents)
        pool = sentences(document)
        if len(pool) >= 3:
            task = rng.choice((_facts, _facts, _facts, _keywords, _keywords, _repeat, _cloze, _headline, _recall))
            text = task(rng, pool, document)
            if text:
                yield text


def _facts(rng: random.Random, pool: list[str], document: str) -> str:
    arrow, joint, colon = rng.choice(_ARROWS), rng.choice((" , ", ", ", " ; ", " & ")), rng.choice((" : ", ": ", " = "))
    kinds = rng.choice((None, None, "flat", "brackets"))
    lines = []
    for sentence in rng.sample(pool, min(len(pool), rng.randint(1, 5))):
        found = facts(sentence)
        if not found:
            continue
        if kinds == "flat":
            record = joint.join(value for values in found.values() for value in values)
        elif kinds == "brackets":
            record = ", ".join(f"{kind[:-1]}[{value}]" for kind, values in found.items() for value in values)
        else:
            record = " | ".join(f"{kind}{colon}{joint.join(values)}" for kind, values in found.items())
        lines.append(f"{record}{arrow}{sentence}")
    return _joined(lines, arrow)


def _keywords(rng: random.Random, pool: list[str], document: str) -> str:
    arrow, mixed = rng.choice(_ARROWS), rng.random() < 0.4
    lines = []
    for sentence in rng.sample(pool, min(len(pool), rng.randint(1, 4))):
        words = keywords(sentence)
        if len(words) >= 2:
            if mixed:
                rng.shuffle(words)
            lines.append(f"{rng.choice(('', 'keywords: '))}{', '.join(words)}{arrow}{sentence}")
    return _joined(lines, arrow)


def _repeat(rng: random.Random, pool: list[str], document: str) -> str:
    arrow = rng.choice(_ARROWS)
    head = rng.choice(("", "copy: ", "Repeat: ", "say again: "))
    return _joined([f"{head}{s}{arrow}{s}" for s in rng.sample(pool, min(len(pool), rng.randint(1, 4)))], arrow)


def _cloze(rng: random.Random, pool: list[str], document: str) -> str:
    """Return a passage, then its sentences with a name or number blanked and the blank's filling."""
    start = rng.randrange(len(pool) - 2)
    passage = pool[start : start + 3]
    lines = [" ".join(passage)]
    for sentence in passage:
        spans = [value for values in facts(sentence).values() for value in values]
        if spans:
            span = rng.choice(spans)
            lines.append(f"{sentence.replace(span, '____', 1)} => {span}")
    return "\n".join(lines) if len(lines) > 1 else ""


def _headline(rng: random.Random, pool: list[str], document: str) -> str:
    """Return passage → its first sentence, or the first sentence's names as a heading."""
    passage = " ".join(pool[: rng.randint(2, 4)])
    heading = ", ".join(facts(pool[0]).get("names", [])[:2]) if rng.random() < 0.6 else pool[0]
    label = rng.choice((END_OF_DOCUMENT, "\nsubject: ", "\nsummary: ", "\nTL;DR: ", "\ntitle: "))
    return f"{passage}{label}{heading}" if heading else ""


def _recall(rng: random.Random, pool: list[str], document: str) -> str:
    """Return a passage, then one of its sentences begun again and finished."""
    passage = pool[: rng.randint(3, 6)]
    again = rng.choice(passage)
    return f"{' '.join(passage)}{rng.choice(_ARROWS)}{again}"


def _joined(lines: list[str], arrow: str) -> str:
    return (END_OF_DOCUMENT if END_OF_DOCUMENT in arrow else "\n").join(lines)
