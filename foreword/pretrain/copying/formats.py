"""Ways to write a record on one line or several: every format a data-to-text task might use, and some more."""

import json
import random
from collections.abc import Callable

Pairs = list[tuple[str, str]]  # (key, value), the thing's name first

_ACTS = ("inform", "describe", "tell", "state", "give", "report", "recommend", "confirm")


def write_key(key: str, casing: str) -> str:
    """Return a key such as `birth place` in a casing: plain, title, upper, camel (birthPlace), snake, or dash."""
    words = key.split()
    if casing == "camel":
        return words[0] + "".join(word.capitalize() for word in words[1:])
    if casing in ("snake", "dash"):
        return {"snake": "_", "dash": "-"}[casing].join(words)
    return {"plain": key, "title": key.title(), "upper": key.upper()}[casing]


def _joined(pattern: str, separator: str) -> Callable[[Pairs], str]:
    return lambda pairs: separator.join(pattern.format(key, value) for key, value in pairs)


def _triples(pattern: str, separator: str, lead: str = "") -> Callable[[Pairs], str]:
    """A name is the subject of all triples; a record of the name alone states its own type."""

    def write(pairs: Pairs) -> str:
        subject = pairs[0][1]
        return lead + separator.join(pattern.format(subject, key, value) for key, value in pairs[1:] or pairs)

    return write


def _table(separator: str) -> Callable[[Pairs], str]:
    return lambda pairs: separator.join(k for k, _ in pairs) + "\n" + separator.join(v for _, v in pairs)


def _json(pairs: Pairs) -> str:
    return json.dumps(dict(pairs), ensure_ascii=False)


def _xml(pairs: Pairs) -> str:
    return " ".join(f"<{key.replace(' ', '_')}>{value}</{key.replace(' ', '_')}>" for key, value in pairs)


def _act(act: str, opening: str, between: str, closing: str) -> Callable[[Pairs], str]:
    return lambda pairs: act + opening + between.join(f"{key}={value}" for key, value in pairs) + closing


def formats() -> list[Callable[[Pairs], str]]:
    """Return the fixed formats; `draw_format` adds dialogue acts and free separators."""
    return [
        _joined("{} : {}", " | "),
        _joined("{} : {}", " | "),
        _joined("{}: {}", " | "),
        _joined("{}[{}]", ", "),
        _joined("{}[{}]", ", "),
        _joined("{}[{}]", " "),
        _joined("{}: {}", ", "),
        _joined("{} = {}", "; "),
        _joined("{}: {}", "\n"),
        _joined("- {}: {}", "\n"),
        _joined("* {} = {}", "\n"),
        _joined("({}, {})", " "),
        _joined("[{}] {}", " "),
        _triples("{} : {} : {}", " | "),
        _triples("{} : {} : {}", " | ", lead=" | "),
        _triples("{} | {} | {}", " ; "),
        _triples("<{}, {}, {}>", " "),
        _triples("({}; {}; {})", ", "),
        _triples("<H> {} <R> {} <T> {}", " "),
        _table("\t"),
        _table(" | "),
        _json,
        _xml,
    ]


def draw_format(rng: random.Random) -> Callable[[Pairs], str]:
    """Return a format; one in five is a dialogue act, one in ten has separators drawn at random."""
    roll = rng.random()
    if roll < 0.2:
        opening, between, closing = rng.choice(
            (("(", ";", ")"), ("(", "; ", ")"), ("(", ", ", ")"), (" ( ", " ; ", " )"))
        )
        return _act(rng.choice(_ACTS), opening, between, closing)
    if roll < 0.3:
        return _joined(
            "{}" + rng.choice((" : ", ":", "=", " -> ", " is ", " ")) + "{}", rng.choice((" , ", " # ", " / ", "; "))
        )
    return rng.choice(formats())


def draw_casing(rng: random.Random) -> str:
    """Return a key casing for `write_key`, the plain one half the time."""
    return rng.choice(("plain", "plain", "plain", "plain", "title", "upper", "camel", "camel", "snake", "dash"))
