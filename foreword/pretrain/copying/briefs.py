"""Briefs: records of two to eight fields, told as people tell them: several fields in one sentence, each said once.

`records.py` states a field a predicate. Here fields become adjectives, phrases behind the noun and clauses, so a short
text covers a whole record. A document tells several records in one manner, format and choice of words: what comes
first shows how to go on, which is what a prefix has to do.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from foreword.pretrain.copying.brief_domains import Case, Kind, Trait, fill, number_word, read_kinds, read_traits
from foreword.pretrain.copying.formats import Pairs, draw_casing, draw_format, write_key
from foreword.pretrain.copying.values import Lexicon, ValueMaker
from foreword.pretrain.corpus import END_OF_DOCUMENT
from foreword.pretrain.pack import Document

_ARROWS = (END_OF_DOCUMENT,) * 12 + (f" {END_OF_DOCUMENT} ", "\n", "\n", " => ", "\nText: ", " || ")
_TYPE_KEYS = ("type", "type", "Type", "kind", "category", "what")
_OPENINGS = ("If you want {}, try {}.", "For {}, there is {}.", "Looking for {}? Try {}.", "One option for {} is {}.")


@dataclass(frozen=True)
class Field:
    """One stated fact: the key as written, the value, and the phrases that state it."""

    key: str
    value: str
    case: Case

    def phrases(self, roles: str) -> list[tuple[str, str]]:
        """Return (role, phrase) of the given roles, filled in."""
        slots = {"k": self.key, "w": number_word(self.value)}
        return [(role, phrase.format(self.value, **slots)) for role in roles for phrase in self.case.phrases[role]]


@dataclass(frozen=True)
class Brief:
    """A thing to tell of: its noun, its name, its fields; `typed` if the record says what it is."""

    noun: str
    name: str
    fields: tuple[Field, ...]
    typed: bool


class Teller:
    """Tells briefs in one manner: how many fields a sentence takes, how sentences open, which words are liked."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.first = rng.choice((1, 2, 3, 3, 4, 5, 8))  # fields in the first sentence
        self.later = rng.choice((1, 1, 2, 2, 3))  # fields in each further one
        self.openings: list[Callable[[Brief, str, list[str], list[str]], str]] = rng.sample(
            [self._is_a, self._is_a, self._fronted, self._there_is, self._bare, self._comma, self._inverted, self._if],
            k=rng.choice((1, 2, 3)),
        )
        self.shuffle = rng.random() < 0.5
        self.steady = rng.random() < 0.5  # the same words for the same key throughout a document
        self.subject = rng.choice(("it", "it", "name", "noun", "mixed"))
        self.clauses = rng.choice((0.0, 0.2, 0.6))
        self.merge = rng.random() < 0.7  # "is cheap and is near" becomes "is cheap and near"
        self.liked: dict[tuple[str, str, str], int] = {}

    def tell(self, brief: Brief) -> str:
        """Return one to four sentences that state every field once."""
        fields = list(brief.fields)
        if self.shuffle:
            self.rng.shuffle(fields)
        said = [self._opening(brief, fields[: self.first])]
        rest = fields[self.first :]
        while rest:
            said.append(self._further(brief, rest[: self.later]))
            rest = rest[self.later :]
        return " ".join(sentence[0].upper() + sentence[1:] for sentence in said)

    def _opening(self, brief: Brief, fields: list[Field]) -> str:
        adjectives: list[str] = []
        behind: list[str] = []
        predicates: list[str] = []
        place = ""
        opening = self.rng.choice(self.openings)
        for field in fields:
            roles = "ablp" if len(adjectives) < 2 else "blp"
            role, phrase = self._choose(field, roles if len(behind) < 3 else "p")
            if role == "a":
                adjectives.append(phrase)
            elif role == "l" and opening == self._fronted and not place:
                place = phrase
            elif role in "bl":
                behind.append(phrase)
            else:
                predicates.append(phrase)
        noun = " ".join([*adjectives, brief.noun, *behind])
        if place:
            front = self.rng.choice(("", "Located ", "Situated ", "Right "))
            return f"{front}{place}, " + self._is_a(brief, noun, predicates, behind)
        return opening(brief, noun, predicates, behind)

    def _choose(self, field: Field, roles: str) -> tuple[str, str]:
        liked = (field.key, field.value if len(field.case.values) > 4 else "", roles)
        choices = field.phrases(roles) or field.phrases("p")
        if not self.steady:
            return self.rng.choice(choices)
        # A liking is remembered as an index, so that another value of the same key is told in the same words.
        index = self.liked.setdefault(liked, self.rng.randrange(1000))
        return choices[index % len(choices)]

    def _predicates(self, predicates: list[str]) -> str:
        if self.merge:
            shared = next((v for v in ("is ", "has ") if all(p.startswith(v) for p in predicates)), "")
            if shared and len(predicates) > 1:
                predicates = [predicates[0], *(p.removeprefix(shared) for p in predicates[1:])]
        if len(predicates) == 1:
            return predicates[0]
        return ", ".join(predicates[:-1]) + self.rng.choice((" and ", " and ", ", and ")) + predicates[-1]

    def _is_a(self, brief: Brief, noun: str, predicates: list[str], behind: list[str]) -> str:
        tail = f" {self.rng.choice(('that', 'which'))} {self._predicates(predicates)}" if predicates else ""
        return f"{brief.name} is {article(noun)}{tail}."

    def _fronted(self, brief: Brief, noun: str, predicates: list[str], behind: list[str]) -> str:
        return self._is_a(brief, noun, predicates, behind)

    def _there_is(self, brief: Brief, noun: str, predicates: list[str], behind: list[str]) -> str:
        called = self.rng.choice(("called", "named", "by the name of"))
        tail = f". It {self._predicates(predicates)}" if predicates else ""
        return f"there is {article(noun)} {called} {brief.name}{tail}."

    def _bare(self, brief: Brief, noun: str, predicates: list[str], behind: list[str]) -> str:
        """Return `The Mill flat near the coast has low prices.`; without a predicate, the plain form."""
        bare = " ".join([brief.name, *([brief.noun] if brief.typed else []), *behind])
        adjectives = noun.split(f" {brief.noun}")[0] if not noun.startswith(brief.noun) else ""
        if not predicates or adjectives:
            return self._is_a(brief, noun, predicates, behind)
        return f"{bare} {self._predicates(predicates)}."

    def _comma(self, brief: Brief, noun: str, predicates: list[str], behind: list[str]) -> str:
        if not predicates:
            return self._is_a(brief, noun, predicates, behind)
        return f"{brief.name}, {article(noun)}, {self._predicates(predicates)}."

    def _inverted(self, brief: Brief, noun: str, predicates: list[str], behind: list[str]) -> str:
        tail = f", and it {self._predicates(predicates)}" if predicates else ""
        return f"{article(noun)} is {brief.name}{tail}."

    def _if(self, brief: Brief, noun: str, predicates: list[str], behind: list[str]) -> str:
        opening = self.rng.choice(_OPENINGS).format(article(noun), brief.name)
        return f"{opening} It {self._predicates(predicates)}." if predicates else opening

    def _further(self, brief: Brief, fields: list[Field]) -> str:
        if len(fields) == 1 and self.rng.random() < self.clauses and fields[0].case.phrases["c"]:
            return f"{self._choose(fields[0], 'c')[1]}."
        predicates = [phrase for _, phrase in (self._choose(field, "p") for field in fields)]
        kind = self.rng.choice(("it", "name", "noun")) if self.subject == "mixed" else self.subject
        subject = {"it": "it", "name": brief.name, "noun": f"the {brief.noun}"}[kind]
        also = "also " if self.rng.random() < 0.1 and predicates[0].startswith("has ") else ""
        return f"{subject} {also}{self._predicates(predicates)}."


def article(noun: str) -> str:
    """Return a noun phrase with its indefinite article."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def brief_documents(rng: random.Random, lexicon: Lexicon) -> Iterator[Document]:
    """Yield documents without end: one to eight briefs of one kind, with the same keys at hand, told by one teller."""
    traits, kinds = read_traits(), read_kinds()
    maker = ValueMaker(rng, lexicon)
    while True:
        kind = rng.choice(kinds)
        chosen = _keys(rng, maker, traits)
        name_key, type_key = rng.choice(("name", "name", "name", "title")), rng.choice(_TYPE_KEYS)
        written, arrow, teller = _writer(rng, name_key, type_key), rng.choice(_ARROWS), Teller(rng)
        typed = rng.random() < 0.8
        glue = END_OF_DOCUMENT if END_OF_DOCUMENT in arrow else "\n" if "\n" not in arrow else "\n\n"
        document: list[tuple[str, bool]] = []
        for number in reversed(range(rng.choice((1, 2, 3, 4, 6, 8)))):
            brief = _draw(rng, maker, kind, chosen, typed)
            # Nobody can guess a made-up record, so only what is told of it is learned.
            document += [(f"{written(brief)}{arrow}", False), (teller.tell(brief) + (glue if number else ""), True)]
        yield tuple(document)


def _keys(rng: random.Random, maker: ValueMaker, traits: list[Trait]) -> list[tuple[str, Trait]]:
    """Return four to nine (key, attribute) of a document, made-up keys among them."""
    made_up = traits[-1]
    chosen = [*rng.sample(traits[:-1], k=rng.randint(3, 7)), *[made_up] * rng.choice((0, 0, 0, 1))]
    keys = [(fill(rng.choice(trait.keys), maker), trait) for trait in chosen]
    return list(dict(keys).items())


def _draw(rng: random.Random, maker: ValueMaker, kind: Kind, chosen: list[tuple[str, Trait]], typed: bool) -> Brief:
    # As in most real tables, fields keep their order and some are missing.
    kept = sorted(rng.sample(range(len(chosen)), k=rng.randint(min(2, len(chosen)), len(chosen))))
    fields = []
    for key, trait in (chosen[i] for i in kept):
        case = rng.choice(trait.cases)
        fields.append(Field(key, fill(rng.choice(case.values), maker), case))
    noun = rng.choice(kind.nouns) if typed else kind.nouns[0]
    name = fill(rng.choice(kind.names), maker)
    return Brief(noun, name[0].upper() + name[1:], tuple(fields), typed)


def _writer(rng: random.Random, name_key: str, type_key: str) -> Callable[[Brief], str]:
    casing, layout = draw_casing(rng), draw_format(rng)
    if rng.random() < 0.6:
        layout = _prefix_tuning_layout

    def written(brief: Brief) -> str:
        pairs: Pairs = [(name_key, brief.name)]
        if brief.typed:
            pairs.append((type_key, brief.noun))
        return layout([*pairs, *((write_key(field.key, casing), field.value) for field in brief.fields)])

    return written


def _prefix_tuning_layout(pairs: Pairs) -> str:
    return " | ".join(f"{key} : {value}" for key, value in pairs)
