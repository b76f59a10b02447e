"""Values that nobody can guess: names, numbers and dates drawn at random, so that only copying predicts them."""

import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of a text: a word list that stays readable in the source."""
    return tuple(text.split())


_ONSETS = split_words("b br c ch cl d dr f fl g gr h j k kl l m n p pr qu r s sh st t th tr v w y z")
_VOWELS = split_words("a a e e i o u ai ea ie oo ou")
_CODAS = ("", *split_words("b ck d l ll m n nd ng nt r rd rt s sk st t th x"))
_MONTHS = split_words("January February March April May June July August September October November December")
_DAYS = split_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_ORG_ENDS = split_words("Group Institute Company Society Works Press Union Partners Foundation Brothers Trust Ltd")
_CURRENCY = ("${}", "£{}", "{} euros", "{} dollars", "€{}", "{} crowns")
_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Lexicon:
    """Words of the training corpora that values are made from."""

    names: tuple[str, ...] = ("Arden", "Boston", "Carver", "Dunmore", "Elena", "Fox", "Harrow", "Linden", "Mercer")
    words: tuple[str, ...] = ("amber", "bridge", "clear", "distant", "engine", "field", "garden", "harbour", "iron")


def read_lexicon(texts: Iterable[str], size: int = 20_000) -> Lexicon:
    """Return the commonest capitalised words inside sentences and the commonest lower-case words of the texts."""
    names: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for text in texts:
        found = _WORD.findall(text)
        names.update(word for word in found if word[0].isupper() and word[1:].islower() and len(word) > 2)
        words.update(word for word in found if word.islower() and len(word) > 3)
    # The very commonest capitalised words are sentence openers (The, In), those of words are function words.
    lower = {word for word, count in words.most_common(3000)}
    chosen = [word for word, _ in names.most_common(size) if word.lower() not in lower]
    return Lexicon(tuple(chosen) or Lexicon.names, tuple(w for w, _ in words.most_common(size)[100:]) or Lexicon.words)


class ValueMaker:
    """Draws values of a named kind from one random generator."""

    def __init__(self, rng: random.Random, lexicon: Lexicon) -> None:
        self.rng, self.lexicon = rng, lexicon

    def make(self, kind: str) -> str:
        """Return a value of a kind: one of the methods below, `a|b|c` for a choice, `n:unit` for a quantity."""
        if "|" in kind:
            return self.rng.choice(kind.split("|"))
        if kind.startswith("n:"):
            return f"{self.number()} {kind[2:]}"
        return getattr(self, kind)()

    def syllables(self) -> str:
        """Return an invented capitalised word of one to three syllables."""
        rng = self.rng
        parts = [
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 3)))
        ]
        return "".join(parts).capitalize()

    def name(self) -> str:
        """Return one capitalised word: half the time from the corpora, half invented."""
        return self.rng.choice(self.lexicon.names) if self.rng.random() < 0.5 else self.syllables()

    def person(self) -> str:
        """Return a first and last name, sometimes with initials."""
        middle = f" {self.rng.choice('ABCDEFGHJKLMNPRSTW')}." if self.rng.random() < 0.15 else ""
        return f"{self.name()}{middle} {self.name()}"

    def place(self) -> str:
        """Return a place: one or two capitalised words, sometimes with a region."""
        roll = self.rng.random()
        if roll < 0.6:
            return self.name()
        return f"{self.name()} {self.name()}" if roll < 0.8 else f"{self.name()}, {self.name()}"

    def title(self) -> str:
        """Return a title of one to four words."""
        rng = self.rng
        words = [rng.choice(self.lexicon.words).capitalize() for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.4:
            words.insert(rng.randrange(len(words) + 1), self.name())
        return " ".join(["The", *words] if rng.random() < 0.4 else words)

    def org(self) -> str:
        """Return a company or body."""
        end = self.rng.choice(_ORG_ENDS)
        return self.rng.choice((f"{self.name()} {end}", f"{self.name()} and {self.name()}", f"{self.title()} {end}"))

    def word(self) -> str:
        """Return one or two lower-case words of the corpora."""
        words = [self.rng.choice(self.lexicon.words) for _ in range(self.rng.choice((1, 1, 2)))]
        return " ".join(words)

    def number(self) -> str:
        """Return a number of one to six digits, thousands sometimes marked."""
        value = self.rng.randrange(10 ** self.rng.randint(1, 6))
        return f"{value:,}" if self.rng.random() < 0.3 else str(value)

    def decimal(self) -> str:
        """Return a number with one or two decimals."""
        return f"{self.rng.uniform(0, 10 ** self.rng.randint(1, 3)):.{self.rng.randint(1, 2)}f}"

    def small(self) -> str:
        """Return a count from 2 to 40."""
        return str(self.rng.randint(2, 40))

    def year(self) -> str:
        """Return a year."""
        return str(self.rng.randint(1500, 2030))

    def date(self) -> str:
        """Return a date in one of several forms."""
        rng = self.rng
        day, month, year = rng.randint(1, 28), rng.randrange(12), rng.randint(1700, 2030)
        forms = (
            f"{day} {_MONTHS[month]} {year}",
            f"{_MONTHS[month]} {day}, {year}",
            f"{year}-{month + 1:02d}-{day:02d}",
        )
        return rng.choice((*forms, f"{_MONTHS[month]} {year}", f"{rng.choice(_DAYS)} {day} {_MONTHS[month]}"))

    def time(self) -> str:
        """Return a time of day."""
        hour, minute = self.rng.randint(1, 12), self.rng.choice((0, 15, 30, 45, self.rng.randrange(60)))
        return self.rng.choice((f"{hour}:{minute:02d} {self.rng.choice(('am', 'pm'))}", f"{hour + 8:02d}:{minute:02d}"))

    def hour(self) -> str:
        """Return an hour such as `7 am`."""
        return f"{self.rng.randint(1, 12)} {self.rng.choice(('am', 'pm'))}"

    def money(self) -> str:
        """Return a price in some currency."""
        return self.rng.choice(_CURRENCY).format(self.number() if self.rng.random() < 0.7 else self.decimal())

    def money_range(self) -> str:
        """Return a price range such as `£20-25`."""
        low = self.rng.randint(1, 60) * self.rng.choice((1, 5, 10))
        high = low + self.rng.choice((3, 5, 10, 20, 50))
        return self.rng.choice(_CURRENCY).format(f"{low}{self.rng.choice(('-', '-', ' to '))}{high}")

    def code(self) -> str:
        """Return letters and digits such as a flight or model number."""
        letters = "".join(self.rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(self.rng.randint(1, 3)))
        return f"{letters}{self.rng.choice(('', '-', ' '))}{self.rng.randrange(10, 10_000)}"
