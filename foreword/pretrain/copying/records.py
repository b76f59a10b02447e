"""Documents of made-up records with the sentences that state them, and the other way round, and questions on them."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from foreword.pretrain.copying.domains import Attribute, Domain, read_domains
from foreword.pretrain.copying.formats import Pairs, draw_casing, draw_format, write_key
from foreword.pretrain.copying.values import Lexicon, ValueMaker
from foreword.pretrain.corpus import END_OF_DOCUMENT

# The end-of-document token between record and sentence is the Prefix-Tuning format (source BOS target EOS).
_ARROWS = (
    f" {END_OF_DOCUMENT} ",
    END_OF_DOCUMENT,
    END_OF_DOCUMENT,
    "\n",
    "\n",
    " => ",
    " -> ",
    "\nText: ",
    " || ",
    "\n\n",
)
_HEADS = ("", "", "", "", "", "table to text: ", "data: ", "Record: ", "describe: ", "Facts: ", "Write a sentence. ")


@dataclass(frozen=True)
class Record:
    """A made-up thing and the values of some of its attributes."""

    domain: Domain
    noun: str
    name: str
    values: tuple[tuple[Attribute, str], ...]

    def pairs(self, casing: str, name_key: str) -> Pairs:
        """Return (key, value) pairs, the name first under `name_key`."""
        return [(name_key, self.name), *((write_key(a.key, casing), v) for a, v in self.values)]


def draw_record(rng: random.Random, maker: ValueMaker, domain: Domain, attributes: tuple[Attribute, ...]) -> Record:
    """Return a record of a domain with a fresh name and fresh values."""
    values = tuple((attribute, maker.make(attribute.kind)) for attribute in attributes)
    return Record(domain, rng.choice(domain.nouns), maker.make(domain.name_kind), values)


class Narrator:
    """States records in sentences; one narrator keeps one manner, so a document's records are told alike."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.manners: list[Callable[[Record, list[str], Pairs, str], str]] = rng.sample(
            [
                self._plain,
                self._apposition,
                self._relative,
                self._participle,
                self._possessive,
                self._with,
                self._there,
            ],
            k=rng.choice((1, 2, 3)),
        )
        self.per_sentence = rng.choice((1, 2, 2, 3, 4))
        self.index = rng.randrange(3)  # which phrase of an attribute
        self.vary = rng.random() < 0.5
        self.pronoun_share = rng.choice((0.0, 0.5, 1.0))
        self.shuffle = rng.random() < 0.3

    def state(self, record: Record) -> str:
        """Return sentences that state every value of a record."""
        values = list(record.values)
        if self.shuffle:
            self.rng.shuffle(values)
        sentences: list[str] = []
        while values:
            size = min(len(values), self.per_sentence)
            chunk, values = values[:size], values[size:]
            said = [a.predicate(v, self.rng.randrange(3) if self.vary else self.index) for a, v in chunk]
            manner = self._plain if sentences else self.rng.choice(self.manners)
            if manner == self._plain and size == 1 and self.rng.random() < 0.15:
                manner = self._possessive
            subject = self._subject(record, first=not sentences)
            sentences.append(manner(record, said, [(a.key, v) for a, v in chunk], subject))
        return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)

    def _subject(self, record: Record, first: bool) -> str:
        if first or self.rng.random() >= self.pronoun_share:
            return record.name
        pronoun = self.rng.choice(("he", "she")) if record.domain.pronoun == "they" else "it"
        return self.rng.choice((pronoun, pronoun, f"the {record.noun}"))

    def _joined(self, said: list[str]) -> str:
        if len(said) == 1:
            return said[0]
        return ", ".join(said[:-1]) + self.rng.choice((" and ", " and ", ", and ")) + said[-1]

    def _plain(self, record: Record, said: list[str], pairs: Pairs, subject: str) -> str:
        return f"{subject} {self._joined(said)}."

    def _apposition(self, record: Record, said: list[str], pairs: Pairs, subject: str) -> str:
        return f"{record.name}, {_article(record.noun)}, {self._joined(said)}."

    def _relative(self, record: Record, said: list[str], pairs: Pairs, subject: str) -> str:
        who = "who" if record.domain.pronoun == "they" else "which"
        if len(said) == 1:
            return f"{record.name} is {_article(record.noun)} {who} {said[0]}."
        return f"{record.name}, {who} {said[0]}, {self._joined(said[1:])}."

    def _participle(self, record: Record, said: list[str], pairs: Pairs, subject: str) -> str:
        opening = next((s for s in said if s.startswith("was ")), None)
        if opening is None or len(said) == 1:
            return self._apposition(record, said, pairs, subject)
        rest = [s for s in said if s is not opening]
        return f"{opening.removeprefix('was ')}, {record.name} {self._joined(rest)}."

    def _possessive(self, record: Record, said: list[str], pairs: Pairs, subject: str) -> str:
        key, value = pairs[0]
        if value in ("yes", "no"):
            return self._plain(record, said, pairs, subject)
        first = self.rng.choice(
            (
                f"the {key} of {record.name} is {value}",
                f"{record.name} has {value} as {key}",
                f"{value} is the {key} of {record.name}",
            )
        )
        return f"{first}." if len(said) == 1 else f"{first}, and {subject} {self._joined(said[1:])}."

    def _with(self, record: Record, said: list[str], pairs: Pairs, subject: str) -> str:
        key, value = pairs[0]
        if len(said) == 1 or value in ("yes", "no"):
            return self._relative(record, said, pairs, subject)
        return f"with {value} as its {key}, {record.name} {self._joined(said[1:])}."

    def _there(self, record: Record, said: list[str], pairs: Pairs, subject: str) -> str:
        who = "who" if record.domain.pronoun == "they" else "that"
        opening = self.rng.choice(
            (f"there is {_article(record.noun)} called {record.name}", f"{record.name} is {_article(record.noun)}")
        )
        return f"{opening} {who} {self._joined(said)}."


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def record_documents(rng: random.Random, lexicon: Lexicon) -> Iterator[str]:
    """Yield documents without end, each of one to five records of a domain in one format, manner and direction."""
    domains = read_domains()
    maker = ValueMaker(rng, lexicon)
    while True:
        domain = rng.choice(domains)
        count = rng.choice((1, 1, 1, 2, 3, 4, 5))
        records = [draw_record(rng, maker, domain, _some_attributes(rng, domain)) for _ in range(count)]
        yield rng.choice((_tell, _tell, _tell, _tell, _extract, _ask))(rng, records)


def _some_attributes(rng: random.Random, domain: Domain) -> tuple[Attribute, ...]:
    return tuple(rng.sample(domain.attributes, k=rng.randint(1, min(6, len(domain.attributes)))))


def _tell(rng: random.Random, records: list[Record]) -> str:
    """Return record → text, the main direction; sometimes one record told twice."""
    written, narrator = _writer(rng, records), Narrator(rng)
    arrow, head = rng.choice(_ARROWS), rng.choice(_HEADS)
    told = [f"{head}{written(record)}{arrow}{narrator.state(record)}" for record in records]
    if rng.random() < 0.1:
        told.append(Narrator(rng).state(records[-1]))
    return _glue(arrow).join(told)


def _extract(rng: random.Random, records: list[Record]) -> str:
    """Return text → record."""
    written, narrator, arrow = _writer(rng, records), Narrator(rng), rng.choice(_ARROWS)
    return _glue(arrow).join(f"{narrator.state(record)}{arrow}{written(record)}" for record in records)


def _ask(rng: random.Random, records: list[Record]) -> str:
    """Return records or their text, then questions with answers; yes/no questions ask about true and false values."""
    written, narrator = _writer(rng, records), Narrator(rng)
    record = rng.choice(records)
    context = "\n".join(written(r) if rng.random() < 0.5 else narrator.state(r) for r in records)
    label = rng.choice((("question: ", " answer: "), ("Q: ", "\nA: "), ("Question: ", "\nAnswer: ")))
    lines = []
    for attribute, value in record.values:
        if rng.random() < 0.3:
            shown, other = value, ValueMaker(rng, Lexicon()).make(attribute.kind)
            truth = rng.random() < 0.5
            shown = value if truth else other
            answer = "yes" if shown == value else "no"
            lines.append(f"{label[0]}is {shown} the {attribute.key} of {record.name}?{label[1]}{answer}")
        else:
            lines.append(f"{label[0]}what is the {attribute.key} of {record.name}?{label[1]}{value}")
    return f"{rng.choice(('context: ', '', ''))}{context}\n" + "\n".join(lines)


def _writer(rng: random.Random, records: list[Record]) -> Callable[[Record], str]:
    casing, layout, typed = draw_casing(rng), draw_format(rng), rng.random() < 0.2
    name_key = write_key(rng.choice(("name", "name", "name", "title", records[0].domain.nouns[0])), casing)

    def written(record: Record) -> str:
        pairs = record.pairs(casing, name_key)
        if typed:
            pairs.insert(1, (write_key("type", casing), record.noun))
        return layout(pairs)

    return written


def _glue(arrow: str) -> str:
    # After an end-of-document token the next record must start like a new document does.
    return END_OF_DOCUMENT if END_OF_DOCUMENT in arrow else "\n" if "\n" not in arrow else "\n\n"
