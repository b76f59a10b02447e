"""Demo task `sentiment`: a short review of a product, trip, film, meal or service → `positive` or `negative`.

The label is that of the writer's own last word on the thing, and every polar word turns up under both labels: negated
("far from dull"), conceded ("the plot was thin, but I left smiling"), or said by somebody else ("my aunt hated it; I
asked for seconds"). Counting polar words therefore does not solve the task; `meta["form"]` names the construction.
"""

from collections.abc import Callable
from dataclasses import dataclass

from foreword.tasks.lexicon import LICENCE, Drafted, Draw, Words, loader, sentence, with_article, words
from foreword.tasks.task import GenerationLimits, Task

LABELS = ("positive", "negative")


@dataclass(frozen=True)
class Domain:
    """A kind of thing people review: its names, its parts, and neutral remarks around it."""

    things: Words
    parts: Words
    remarks: tuple[str, ...]


DOMAINS = {
    "product": Domain(
        words(
            "kettle, desk lamp, backpack, radio, keyboard, umbrella, toaster, bicycle pump, torch, rain jacket",
            "blender, garden chair, alarm clock",
        ),
        words("handle, finish, battery, switch, stitching, manual, weight, lid", "hinge, packaging, cable"),
        (
            "It came in a blue box",
            "I ordered it in March",
            "We keep it in the hall",
            "Mine is the grey one",
            "It is my second one this year",
            "I have had it for six weeks",
        ),
    ),
    "trip": Domain(
        words(
            "boat tour, walking tour, bus trip, weekend away, train ride, cave visit, island cruise, city break",
            "balloon flight, canal trip, camping week",
        ),
        words("guide, route, cabin, view, timetable, beach, weather, crew", "harbour stop, tent, captain"),
        (
            "We went on a Tuesday",
            "There were nine of us",
            "It took most of the day",
            "We left from platform two",
            "The tickets came by post",
            "My cousin took the photographs",
        ),
    ),
    "film": Domain(
        words(
            "film, thriller, comedy, documentary, western, cartoon, musical, war film", "romance, mystery, short film"
        ),
        words("plot, acting, ending, music, dialogue, camera work, opening, lead", "soundtrack, pacing, villain"),
        (
            "It runs for two hours",
            "We saw it at the early show",
            "It is set in a fishing village",
            "The director is new to me",
            "It was the last show of the week",
            "We sat in the third row",
        ),
    ),
    "meal": Domain(
        words("lunch, dinner, soup, breakfast, fish pie, birthday meal, curry, picnic", "brunch, roast, noodle bowl"),
        words("bread, sauce, dessert, salad, coffee, table, starter, rice", "gravy, pastry, tea"),
        (
            "We had a table by the door",
            "There were four of us",
            "We ordered from the short menu",
            "It was a rainy evening",
            "They bring water without asking",
            "I had the vegetarian one",
        ),
    ),
    "service": Domain(
        words(
            "haircut, car repair, dentist, piano lesson, moving firm, cleaner, locksmith, optician",
            "plumber, tailor, driving lesson",
        ),
        words(
            "staff, waiting room, booking, advice, price, receptionist, work, phone line", "invoice, parking, website"
        ),
        (
            "I booked by telephone",
            "They are behind the station",
            "It took about an hour",
            "I had been there once before",
            "They are open on Saturdays",
            "A neighbour gave me the number",
        ),
    ),
}

ADJECTIVES = {
    "positive": words(
        "good, lovely, superb, delightful, excellent, charming, brilliant, pleasant, wonderful, first-rate, enjoyable, "
        "impressive, splendid, fine, admirable, faultless, likeable, memorable",
        "marvellous, terrific, outstanding, great, magnificent, flawless, satisfying",
    ),
    "negative": words(
        "bad, awful, dull, dreadful, poor, tiresome, disappointing, shoddy, feeble, unpleasant, horrible, weak, "
        "clumsy, tedious, ugly, careless, annoying, forgettable",
        "terrible, mediocre, dismal, lousy, wretched, botched, pathetic",
    ),
}

# What the writer did or felt: always about the whole thing, always the last word.
VERDICTS = {
    "positive": words(
        "I would do it all again tomorrow, I left smiling, I have told all my friends to try it, it made my week, "
        "I could not have asked for more, I do not regret a penny, it was worth every minute, I came away happy, "
        "I enjoyed it from start to finish, I was won over",
        "I am already planning the next time, I was grinning all evening, I could hardly believe my luck",
    ),
    "negative": words(
        "I would not do it again, I left shaking my head, I have told all my friends to stay away, it spoiled my week, "
        "I wanted my money back, I regret every penny, it was a waste of time, I came away cross, "
        "I could not wait for it to be over, I felt cheated from start to finish",
        "I am still waiting for an apology, I was yawning all evening, I could hardly believe how little I got",
    ),
}

OTHERS = words(
    "my brother, my aunt, my neighbour, the woman next to me, my flatmate, a friend of mine, my boss, my father",
    "my dentist, the man behind us, my landlady",
)
OPINIONS = {
    "positive": ("loved it", "could not praise it enough", "went back twice", "gave it full marks"),
    "negative": ("hated it", "could not stand it", "asked for a refund", "gave it no marks at all"),
}
STRESS = ("", "", "", "really ", "truly ", "very ", "simply ")
NEGATIONS = (
    "the {part} was far from {adjective}",
    "the {part} was anything but {adjective}",
    "the {part} was not {adjective} at all",
    "nothing about the {part} was {adjective}",
    "I cannot call the {part} {adjective}",
    "the {part} was never {adjective}, not for a moment",
)
CONCESSIONS = (
    "{against}, but {verdict}",
    "although {against}, {verdict}",
    "{verdict}, even though {against}",
    "{against}. Still, {verdict}",
    "{against}. All the same, {verdict}",
)
OPENERS = (
    "A few words about the {thing}",
    "This is about the {thing}",
    "So we finally tried the {thing}",
    "It was my first {thing} in years",
)


def sentiment_task(rows: int = 2000, seed: int = 0) -> Task:
    """Return the task `sentiment`: `rows` training reviews, dev and test a tenth as many, labels in balance.

    About a fifth of the adjectives, verdicts and nouns in dev and test never occur in train.
    """
    return Task(
        name="sentiment",
        loader=loader("sentiment", _draft, rows, seed, LABELS),
        metrics=("accuracy",),
        generation=GenerationLimits(max_new_tokens=8),
        labels=LABELS,
        template="{review} → positive | negative",
        licence=LICENCE,
    )


class _Review:
    """One review in the making: its domain, its label, and the choices it draws."""

    def __init__(self, draw: Draw, label: str) -> None:
        self.draw = draw
        self.label = label
        self.other = LABELS[1 - LABELS.index(label)]
        self.domain = DOMAINS[draw.one(tuple(DOMAINS))]
        self.thing = draw.word(self.domain.things)

    def part(self) -> str:
        return self.thing if self.draw.chance(0.2) else self.draw.word(self.domain.parts)

    def adjective(self, label: str) -> str:
        return self.draw.word(ADJECTIVES[label])

    def claim(self, label: str) -> str:
        """A statement that means `label`, said directly or by denying the opposite."""
        if self.draw.chance(0.1):
            return self.negated(label)
        quality = self.draw.one(STRESS) + self.adjective(label)
        return self.draw.one((f"the {self.part()} was {quality}", f"I found the {self.part()} {quality}"))

    def negated(self, label: str) -> str:
        opposite = LABELS[1 - LABELS.index(label)]
        return self.draw.one(NEGATIONS).format(part=self.part(), adjective=self.adjective(opposite))

    def verdict(self) -> str:
        return self.draw.word(VERDICTS[self.label]) if self.draw.chance(0.5) else self.claim(self.label)


def _plain(review: _Review) -> str:
    return review.claim(review.label)


def _double(review: _Review) -> str:
    return f"{review.claim(review.label)}, and {review.verdict()}"


def _negated(review: _Review) -> str:
    return review.negated(review.label)


def _conceded(review: _Review) -> str:
    against = review.claim(review.other)
    first, stop, rest = review.draw.one(CONCESSIONS).format(against=against, verdict=review.verdict()).partition(". ")
    return f"{sentence(first)} {rest}" if stop else first


def _reported(review: _Review) -> str:
    person = review.draw.word(OTHERS)
    agrees = review.draw.chance(0.5)
    opinion = review.draw.one(OPINIONS[review.label if agrees else review.other])
    endings = ("I can only agree", "I felt the same") if agrees else ("I cannot see why", "I felt quite the opposite")
    return f"{person} {opinion}, and {review.draw.one(endings)}"


def _outweighed(review: _Review) -> str:
    adjective, part = review.adjective(review.other), review.draw.word(review.domain.parts)
    if review.label == "negative":
        return f"not even the {adjective} {part} could save the {review.thing}"
    return f"even the {adjective} {part} could not spoil the {review.thing}"


def _expected(review: _Review) -> str:
    met = review.draw.chance(0.5)
    adjective = review.adjective(review.label if met else review.other)
    forms = (
        f"I had expected {with_article(adjective)} {review.thing}, and I was {'right' if met else 'wrong'}",
        f"people said the {review.part()} would be {adjective}, and they were {'right' if met else 'mistaken'}",
    )
    return review.draw.one(forms)


# How often each construction is drawn: plain enough for single words to help, not enough for them to suffice.
FORMS: tuple[tuple[str, int, Callable[[_Review], str]], ...] = (
    ("plain", 8, _plain),
    ("double", 5, _double),
    ("negated", 2, _negated),
    ("conceded", 4, _conceded),
    ("reported", 2, _reported),
    ("outweighed", 1, _outweighed),
    ("expected", 1, _expected),
)
_FORM_DRAWS = tuple((name, make) for name, weight, make in FORMS for _ in range(weight))


def _draft(draw: Draw) -> Drafted:
    review = _Review(draw, draw.one(LABELS))
    form, make = draw.one(_FORM_DRAWS)
    sentences = [make(review)]
    # "My aunt loved it" needs the thing named before it.
    if form == "reported" or draw.chance(0.4):
        sentences.insert(0, draw.one(OPENERS).format(thing=review.thing))
    # A turn ("Still, ...") already takes two sentences, and three are the most a review has.
    if draw.chance(0.45) and sum(text.count(". ") + 1 for text in sentences) < 3:
        sentences.insert(draw.number(len(sentences) - 1, len(sentences)), draw.one(review.domain.remarks))
    text = " ".join(map(sentence, sentences))
    return Drafted(text, text, (review.label,), {"form": form})
