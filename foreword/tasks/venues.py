"""Demo task `venues`: an attribute table about a café, museum, pub or pool → one to four sentences, several references.

How a reference is written: shuffle the attributes; put some inside the first sentence (before the noun, behind it, or
as a predicate), then share the rest over further sentences, each with a pronoun, a noun or a clause as its subject.
Every attribute is said exactly once, so `unstated_fields` can count what a model forgot.
"""

import re
from dataclasses import dataclass

from foreword.tasks.lexicon import (
    LANDMARKS,
    LICENCE,
    Drafted,
    Draw,
    joined,
    loader,
    sentence,
    several,
    venue_name,
    with_article,
    words,
)
from foreword.tasks.task import GenerationLimits, Task

FIELDS = ("name", "kind", "area", "near", "price", "rating", "speciality", "opens", "closed", "dogs", "good for")
OPTIONAL = FIELDS[2:]


@dataclass(frozen=True)
class Kind:
    """A kind of venue: its synonyms, what it may charge and what it can be known for."""

    nouns: tuple[str, ...]
    prices: tuple[str, ...]
    specialities: tuple[str, ...]


@dataclass(frozen=True)
class Phrases:
    """Ways to say one attribute, by grammatical role; `marks` are the strings that show it has been said.

    `adjective` goes before the noun, `behind` after it, `predicate` after "it", and `clause` stands alone.
    """

    marks: tuple[str, ...]
    predicate: tuple[str, ...]
    clause: tuple[str, ...]
    adjective: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()
    tone: int = 0


def _kind(nouns: str, prices: str, specialities: str) -> Kind:
    return Kind(words(nouns).seen, words(prices).seen, words(specialities).seen)


_ENTRY = "free, cheap, moderate, high"
_TABLE = "cheap, moderate, high"
KINDS = {
    "café": _kind("café, coffee house", _TABLE, "plum cake, ginger scones, cold coffee, almond tart, walnut toast"),
    "pub": _kind("pub, tavern", _TABLE, "mutton pie, dark ale, quiz nights, pickled onions, pear cider"),
    "museum": _kind("museum", _ENTRY, "clockwork birds, old ship models, whale bones, toy trains, painted maps"),
    "park": _kind("park, public garden", "free", "rose walk, duck pond, wooden maze, apple trees, open-air chess"),
    "theatre": _kind("theatre, playhouse", _TABLE, "shadow plays, puppet shows, late comedies, short operas"),
    "swimming pool": _kind(
        "swimming pool, pool", _TABLE, "long water slide, warm paddling pool, diving tower, salt bath"
    ),
    "library": _kind("library, public library", "free", "story hours, sea charts, rare comics, glass reading room"),
    "cinema": _kind("cinema, picture house", _TABLE, "silent films, velvet seats, midnight shows, salted popcorn"),
    "restaurant": _kind("restaurant, eatery", _TABLE, "smoked trout, onion soup, lamb stew, mushroom rice, bean salad"),
    "bakery": _kind("bakery, bread shop", _TABLE, "rye loaves, poppy seed rolls, honey buns, cheese twists"),
    "bookshop": _kind("bookshop, book store", _TABLE, "travel writing, signed novels, atlases, second-hand poetry"),
    "gallery": _kind("gallery, art gallery", _ENTRY, "ink drawings, glass animals, night photographs, river paintings"),
}

PRICES = {
    "free": Phrases(
        marks=("free", "costs nothing", "nothing at the door", "no charge", "pay nothing"),
        predicate=("is free to enter", "costs nothing to visit", "asks for nothing at the door"),
        clause=("entry is free", "there is no charge", "you pay nothing to get in"),
        adjective=("free",),
        behind=("with free entry",),
        tone=1,
    ),
    "cheap": Phrases(
        marks=("cheap", "inexpensive", "low-priced", "low prices", "prices low", "are low", "not pay much"),
        predicate=("is cheap", "is inexpensive", "keeps its prices low", "has low prices"),
        clause=("prices are low", "you will not pay much", "everything is cheap"),
        adjective=("cheap", "inexpensive", "low-priced"),
        behind=("with low prices",),
        tone=1,
    ),
    "moderate": Phrases(
        marks=("mid-priced", "moderate", "moderately", "average price", "mid-range"),
        predicate=("is moderately priced", "has moderate prices", "stays in the mid-range for prices"),
        clause=("prices are moderate", "you will pay about the average price"),
        adjective=("mid-priced", "moderately priced"),
        behind=("with moderate prices",),
    ),
    "high": Phrases(
        marks=("expensive", "high prices", "pricey", "are high", "high-priced", "a good deal of money"),
        predicate=("is expensive", "is pricey", "has high prices", "costs a good deal of money"),
        clause=("prices are high", "everything is expensive"),
        adjective=("expensive", "high-priced", "pricey"),
        behind=("with high prices",),
        tone=-1,
    ),
}

DOGS = {
    "allowed": Phrases(
        marks=("dog-friendly", "welcomes dogs", "lets dogs in", "dogs are welcome", "bring your dog", "dogs may come"),
        predicate=("welcomes dogs", "lets dogs in", "is dog-friendly"),
        clause=("dogs are welcome", "you may bring your dog", "dogs may come too"),
        adjective=("dog-friendly",),
        tone=1,
    ),
    "not allowed": Phrases(
        marks=("not allow dogs", "keeps dogs out", "no dogs", "dogs are not allowed", "dogs must stay", "dogs at home"),
        predicate=("does not allow dogs", "keeps dogs out", "takes no dogs"),
        clause=("dogs are not allowed", "dogs must stay outside", "visitors have to leave their dogs at home"),
        tone=-1,
    ),
}

# An area takes "in the" unless it is listed with another preposition.
AREAS = words("old town, city centre, university quarter, railway district, hill district, east end, docklands").seen
_AREAS_ELSEWHERE = {
    "harbour": "at the harbour",
    "riverside": "on the riverside",
    "market square": "on the market square",
    "north side": "on the north side",
    "south side": "on the south side",
}
GUESTS = ("families", "students", "couples", "groups", "children", "tourists", "walkers", "older visitors")
HOURS = (
    "6 am",
    "7 am",
    "8 am",
    "9 am",
    "10 am",
    "11 am",
    "1 pm",
    "2 pm",
    "4 pm",
    "5 pm",
    "7.30 am",
    "8.30 am",
    "9.30 am",
)
HOUR_WORDS = {"6": "six", "7": "seven", "8": "eight", "9": "nine", "10": "ten", "11": "eleven"}
DAYS = ("Mondays", "Tuesdays", "Wednesdays", "Thursdays", "Sundays")
NUMBERS = {"1": "one", "2": "two", "3": "three", "4": "four", "5": "five"}


def venues_task(rows: int = 2000, seed: int = 0) -> Task:
    """Return the task `venues`: `rows` training tables with 2 to 5 references each; dev and test a tenth as many.

    Names in dev and test never occur in train, and some of their words do not either.
    """
    return Task(
        name="venues",
        loader=loader("venues", _draft, rows, seed),
        metrics=("bleu", "rouge"),
        generation=GenerationLimits(max_new_tokens=128),
        template="{field : value | field : value ...} → sentences that state every field",
        licence=LICENCE,
    )


def linearise(fields: dict[str, str]) -> str:
    """Return the source text of a table: `name : The Copper Kettle | kind : café | price : cheap`."""
    return " | ".join(f"{field} : {fields[field]}" for field in FIELDS if field in fields)


def parse_source(source: str) -> dict[str, str]:
    """Return the fields of a source text; the inverse of `linearise`."""
    return dict(part.split(" : ", 1) for part in source.split(" | "))


def unstated_fields(source: str, text: str) -> list[str]:
    """Return the fields of `source` whose value, or a known paraphrase of it, does not occur in `text`."""
    fields = parse_source(source)
    plain = text.casefold()
    return [name for name in fields if not any(_occurs(mark, plain) for mark in _marks(name, fields))]


def _occurs(mark: str, plain: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(mark.casefold())}(?!\w)", plain) is not None


def _marks(field: str, fields: dict[str, str]) -> tuple[str, ...]:
    value = fields[field]
    if field == "kind" and value in KINDS:
        return KINDS[value].nouns
    return _phrases(field, value).marks


def _draft(draw: Draw) -> Drafted:
    kind = draw.one(tuple(KINDS))
    fields = {"name": venue_name(draw), "kind": kind}
    for field in draw.some(OPTIONAL, draw.number(1, 6)):
        fields[field] = _value(draw, field, kind)
    fields = {field: fields[field] for field in FIELDS if field in fields}
    references = several(draw, lambda: _Writer(draw, fields).text(), 2, 5)
    return Drafted(fields["name"], linearise(fields), references, {"fields": fields})


def _value(draw: Draw, field: str, kind: str) -> str:
    if field == "near":
        return draw.word(LANDMARKS)
    if field == "rating":
        return f"{draw.number(1, 5)} out of 5"
    choices = {
        "area": (*AREAS, *_AREAS_ELSEWHERE),
        "price": KINDS[kind].prices,
        "speciality": KINDS[kind].specialities,
        "opens": HOURS,
        "closed": DAYS,
        "dogs": tuple(DOGS),
        "good for": GUESTS,
    }
    return draw.one(choices[field])


def _phrases(field: str, value: str) -> Phrases:
    """Return the ways to say one attribute; a value outside our lists (from a user's table) stands for itself."""
    makers = {
        "area": _area,
        "near": _near,
        "price": lambda price: PRICES.get(price, Phrases((price,), (), ())),
        "rating": _rating,
        "speciality": _speciality,
        "opens": _opens,
        "closed": _closed,
        "dogs": lambda rule: DOGS.get(rule, Phrases((rule,), (), ())),
        "good for": _good_for,
    }
    return makers[field](value) if field in makers else Phrases((value,), (), ())


def _area(area: str) -> Phrases:
    where = _AREAS_ELSEWHERE.get(area, f"in the {area}")
    return Phrases((area,), (f"is {where}", f"stands {where}"), (f"you will find it {where}",), behind=(where,))


def _near(landmark: str) -> Phrases:
    places = (f"near the {landmark}", f"close to the {landmark}", f"not far from the {landmark}")
    predicates = tuple(f"is {place}" for place in places) + (f"stands {places[0]}",)
    return Phrases((landmark,), predicates, (f"the {landmark} is not far away", f"it is {places[1]}"), behind=places)


def _rating(rating: str) -> Phrases:
    stars = rating.split(" ")[0]
    spelled = f"{NUMBERS.get(stars, stars)} out of five"
    tone = {"1": -1, "2": -1, "4": 1, "5": 1}.get(stars, 0)
    predicates, clauses, behind = [], [], []
    for form in (rating, spelled):
        predicates += [f"is rated {form}", f"scores {form}", f"has a rating of {form}"]
        clauses += [f"visitors give it {form}", f"its rating is {form}", f"reviewers rate it {form}"]
        behind += [f"rated {form}", f"with a rating of {form}"]
    return Phrases((rating, spelled), tuple(predicates), tuple(clauses), behind=tuple(behind), tone=tone)


def _speciality(thing: str) -> Phrases:
    predicates = (f"is known for its {thing}", f"is famous for its {thing}", f"prides itself on its {thing}")
    clauses = (f"people come for the {thing}", f"regulars praise the {thing}", f"visitors should not miss the {thing}")
    return Phrases((thing,), predicates, clauses, behind=(f"known for its {thing}", f"famous for its {thing}"), tone=1)


def _opens(hour: str) -> Phrases:
    clock, half = hour.rsplit(" ", 1) if " " in hour else (hour, "")
    spelled = f"{HOUR_WORDS[clock]} in the morning" if clock in HOUR_WORDS and half == "am" else hour
    predicates, clauses = [], []
    for form in (hour, spelled):
        predicates += [f"opens at {form}", f"is open from {form}", f"opens its doors at {form}"]
        clauses += [f"opening time is {form}", f"visitors can come in from {form}"]
    return Phrases((hour, spelled), tuple(predicates), tuple(clauses))


def _closed(day: str) -> Phrases:
    predicates = (f"is closed on {day}", f"does not open on {day}", f"stays shut on {day}")
    return Phrases(
        (day,), predicates, (f"you will find it shut on {day}", f"visitors cannot come in on {day}"), tone=-1
    )


def _good_for(guests: str) -> Phrases:
    predicates = (f"suits {guests}", f"is good for {guests}", f"is a good choice for {guests}")
    clauses = (f"{guests} feel at home there", f"{guests} like it", f"{guests} will enjoy it")
    return Phrases((guests,), predicates, clauses, behind=(f"for {guests}",), tone=1)


# Parts behind the noun keep this order, and one rank is used once: "for families", place, place, one quality.
_RANKS = {"good for": 0, "area": 1, "near": 2, "price": 3, "rating": 3, "speciality": 3}

_BARE_OPENINGS = (
    "{name} is {head}{rest}",
    "there is {head} called {name}{rest}",
    "looking for {head}{rest}? Try {name}",
    "if you are after {head}{rest}, go to {name}",
    "{name} is the name of {head}{rest}",
)
_FULL_OPENINGS = (
    "{name} is {head}{rest}; it {does}",
    "{name} is {head}{rest}, and it {does}",
    "{name}, {head}{rest}, {does}",
    "{head}{rest}, {name} {does}",
    "there is {head} called {name}{rest}, and it {does}",
    "if you want {head}{rest}, try {name}, which {does}",
)


class _Writer:
    """Writes one reference for one table; `todo` is what has not been said yet."""

    def __init__(self, draw: Draw, fields: dict[str, str]) -> None:
        self.draw = draw
        self.name = fields["name"]
        self.noun = draw.one(KINDS[fields["kind"]].nouns)
        named = [field for field in fields if field in OPTIONAL]
        self.todo = {field: _phrases(field, fields[field]) for field in draw.some(named, len(named))}
        self.total, self.said = len(self.todo), False

    def text(self) -> str:
        sentences = [self._opening()]
        while self.todo:
            sentences.append(self._continuation())
        return " ".join(map(sentence, sentences))

    def _opening(self) -> str:
        parts = {"name": self.name, "head": self._head(), "rest": self._behind()}
        count = min(len(self.todo), self.draw.number(0, 2))
        if not count:
            return self.draw.one(_BARE_OPENINGS).format(**parts)
        predicates = [self.draw.one(phrases.predicate) for phrases in self._take(count)]
        return self.draw.one(_FULL_OPENINGS).format(**parts, does=joined(predicates))

    def _head(self) -> str:
        fields = [field for field, phrases in self.todo.items() if phrases.adjective]
        if not fields or self.draw.chance(0.4):
            return with_article(self.noun)
        return with_article(f"{self.draw.one(self.todo.pop(fields[0]).adjective)} {self.noun}")

    def _behind(self) -> str:
        by_rank = {_RANKS[field]: field for field, phrases in self.todo.items() if phrases.behind}
        ranks = self.draw.some(sorted(by_rank), min(len(by_rank), self.draw.number(0, 2)))
        return "".join(f" {self.draw.one(self.todo.pop(by_rank[rank]).behind)}" for rank in sorted(ranks))

    def _take(self, count: int) -> list[Phrases]:
        self.said = len(self.todo) < self.total
        return [self.todo.pop(next(iter(self.todo))) for _ in range(count)]

    def _continuation(self) -> str:
        group = self._take(min(len(self.todo), self.draw.number(1, 3)))
        if len(group) == 1:
            return self._single(*group)
        return self._pair(*group) if len(group) == 2 else self._triple(*group)

    def _subject(self) -> str:
        return self.draw.one(("it", "it", "it", f"the {self.noun}", f"this {self.noun}", "the place", self.name))

    def _single(self, said: Phrases) -> str:
        predicate = self.draw.one(said.predicate)
        also = f"is also{predicate[2:]}" if predicate.startswith("is ") else f"also {predicate}"
        forms = [f"{self._subject()} {predicate}", self.draw.one(said.clause)]
        # "Also" needs something said before it, and suits a merit better than a place or an hour.
        if said.tone > 0 and self.said:
            forms.append(f"{self._subject()} {also}")
        return self.draw.one(forms)

    def _pair(self, first: Phrases, second: Phrases) -> str:
        contrast = first.tone * second.tone < 0
        link = "but" if contrast else "and"
        does, more = self.draw.one(first.predicate), self.draw.one(second.predicate)
        fact, claim = self.draw.one(first.clause), self.draw.one(second.clause)
        forms = [
            f"{self._subject()} {does} {link} {more}",
            f"{self._subject()} {does}, {link} {claim}",
            f"{fact}, {link} {claim}",
            f"the {self.noun}, which {does}, {more}",
        ]
        if contrast:
            forms += [f"although {fact}, it {more}", f"it {does}, although {claim}", f"while it {does}, {claim}"]
        return self.draw.one(forms)

    def _triple(self, first: Phrases, second: Phrases, third: Phrases) -> str:
        does = [self.draw.one(said.predicate) for said in (first, second, third)]
        claim = self.draw.one(third.clause)
        return self.draw.one(
            (
                f"{self._subject()} {joined(does)}",
                f"{self._subject()} {does[0]} and {does[1]}, and {claim}",
                f"{self.draw.one(first.clause)}, and the {self.noun} {does[1]} and {does[2]}",
            )
        )
