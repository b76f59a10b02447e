"""Made-up opinions with their labels, and sentences with the kind of text they come from: classification as text."""

import random
from collections.abc import Iterator

from foreword.pretrain.copying.echoes import sentences
from foreword.pretrain.copying.values import Lexicon, ValueMaker, split_words
from foreword.pretrain.corpus import END_OF_DOCUMENT

_GOOD = split_words(
    "wonderful superb charming excellent moving clever delightful brilliant great enjoyable fresh funny warm rich"
    " strong lovely"
)
_BAD = split_words("dull awful tedious clumsy poor boring terrible weak stale bland messy painful silly cold flat ugly")
_THINGS = split_words(
    "story acting plot music picture service screen design writing pace ending idea sound battery teacher quality"
)
_MILD = ("", "", "really ", "quite ", "very ", "so ", "truly ", "rather ")
_FRAMES = (
    "the {t} is {m}{a}",
    "{m}{a} {t}",
    "I found the {t} {m}{a}",
    "what a {a} {t}",
    "a {a} {t} and {m}{b} {u}",
    "the {t} was {m}{a} and the {u} {b}",
    "{name} gives us {m}{a} {t}",
    "nothing but {a} {t}",
    "with its {a} {t} , it is {m}{b}",
    "everyone agreed that the {t} was {a}",
    "never has any {t} been so {a}",
    "the {u} of {name} , {m}{a} as ever",
)
_PAIRS = (
    ("positive", "negative"),
    ("good", "bad"),
    ("great", "terrible"),
    ("5", "1"),
    ("yes", "no"),
    ("like", "dislike"),
)
_ASKS = ("sentiment: ", "label: ", "rating: ", "It was ", "opinion = ", "Verdict: ")


def opinion(rng: random.Random, maker: ValueMaker, good: bool) -> str:
    """Return one or two made-up phrases of one opinion; a bad word under `not` counts as good and the reverse."""
    words = {True: _GOOD, False: _BAD}

    def phrase() -> str:
        side, negated = good, rng.random() < 0.12
        a, b = (rng.choice(words[side != negated]) for _ in range(2))
        t, u = rng.sample(_THINGS, 2)
        if negated:
            return f"the {t} is not {a}" if rng.random() < 0.5 else f"hardly a {a} {t}"
        return rng.choice(_FRAMES).format(a=a, b=b, t=t, u=u, m=rng.choice(_MILD), name=maker.name())

    return rng.choice((" , ", " . ", " but also ", " and ")).join(phrase() for _ in range(rng.choice((1, 1, 2))))


def label_documents(rng: random.Random, lexicon: Lexicon, sources: dict[str, list[str]]) -> Iterator[str]:
    """Yield documents without end: several opinions with labels, or sentences with the kind of text they are from.

    Args:
        rng: the only source of chance.
        lexicon: words for names.
        sources: documents by source name; the name's first part is the label.
    """
    maker = ValueMaker(rng, lexicon)
    while True:
        arrow = rng.choice((END_OF_DOCUMENT, "\n", " => ", " "))
        glue = END_OF_DOCUMENT if arrow == END_OF_DOCUMENT else "\n"
        ask, pair = rng.choice(_ASKS), rng.choice(_PAIRS)
        lines = []
        for _ in range(rng.randint(2, 8)):
            if len(sources) > 1 and ask == "label: ":
                source = rng.choice(sorted(sources))
                pool = sentences(rng.choice(sources[source])[:4000])
                if pool:
                    lines.append(f"{rng.choice(pool)}{arrow}{ask}{source.split('_')[0]}")
            else:
                good = rng.random() < 0.5
                lines.append(f"{opinion(rng, maker, good)}{arrow}{ask}{pair[0] if good else pair[1]}")
        if lines:
            yield glue.join(lines)


def span_documents(rng: random.Random, lexicon: Lexicon) -> Iterator[str]:
    """Yield documents without end: a span of random words said two or more times, in one order or reversed halves."""
    while True:
        span = [rng.choice(rng.choice((lexicon.words, lexicon.names))) for _ in range(rng.randint(4, 40))]
        joint = rng.choice((" ", " ", ", ", " | ", "\n"))
        glue = rng.choice(("\n", END_OF_DOCUMENT, " ", " => "))
        yield glue.join([joint.join(span)] * rng.choice((2, 2, 3)))
