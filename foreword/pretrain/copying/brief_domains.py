"""What briefs are about: attributes with phrases for every place in a sentence, and kinds of things that have them.

An attribute block is `@ key, other key`, then a line a value: `value ; value > phrase ; phrase`. In a value, `<kind>` is
drawn by `ValueMaker.make`. A phrase begins with its role:

    a  adjective, before the noun            b  behind the noun
    l  behind the noun, and says where       p  predicate, after the subject
    c  clause, a sentence of its own

In a phrase `{}` is the value, `{w}` its leading number as a word, `{k}` the key. No block and no kind is about eating,
drinking, sleeping or visiting places, and no key is one of E2E's: those are left for the tasks that measure.
"""

import re
from dataclasses import dataclass

from foreword.pretrain.copying.values import ValueMaker

ROLES = "ablpc"

_ATTRIBUTES = """
@ close to, neighbour, next to, beside
<place> ; the <title> ; <title> > l near {} ; l close to {} ; l next to {} ; l not far from {} ; l by {} ; l in the vicinity of {} ; p is near {} ; p is close to {} ; p is located near {} ; p can be found near {} ; p lies next to {} ; c {} is nearby ; c {} is close by

@ district, region, quarter, location
<place> ; the <word> quarter ; <name> Valley > l in {} ; l in the area of {} ; l located in {} ; p is in {} ; p is located in {} ; p lies in the {} area ; p can be found in {}
north side ; old harbour ; hillside ; coast ; suburbs ; south bank > l in the {} ; l in the {} area ; l by the {} ; l at the {} ; p is in the {} ; p is located in the {} area ; p can be found by the {} ; c the {} is where you find it

@ price, cost, fee, rate
cheap ; low > a cheap ; a low-cost ; a inexpensive ; a low-priced ; b with low prices ; b at a low price ; p is cheap ; p is inexpensive ; p has low prices ; p does not cost much ; c prices are low ; c the {k} is low
moderate ; average > a moderately priced ; a mid-priced ; a reasonably priced ; b with moderate prices ; b in the middle price range ; p is moderately priced ; p has average prices ; c the {k} is moderate ; c prices are average
high ; expensive > a expensive ; a high-priced ; a pricey ; b with high prices ; b in the high price range ; p is expensive ; p has high prices ; p costs a lot ; c the {k} is high ; c prices are high
less than <money> ; under <money> ; below <money> > b for {} ; b priced at {} ; b with a {k} of {} ; p costs {} ; p is priced at {} ; p has prices of {} ; c the {k} is {} ; c you will pay {}
more than <money> ; over <money> ; from <money> > b for {} ; b priced at {} ; b with a {k} of {} ; p costs {} ; p has prices of {} ; c the {k} is {} ; c expect to pay {}
<money_range> ; <money_range> > b in the {} price range ; b in the price range of {} ; b for {} ; p costs {} ; p is in the price range of {} ; p has a {k} of {} ; c prices range from {} ; c the {k} is {}
<money> > b for {} ; b at {} ; b with a {k} of {} ; p costs {} ; p is priced at {} ; p can be had for {} ; c the {k} is {}

@ rating, review score, grade, reviews
1 out of 5 ; 2 out of 5 ; 3 out of 5 ; 4 out of 5 ; 5 out of 5 ; 6 out of 10 ; 8 out of 10 > b rated {} ; b with a rating of {} ; b with a {k} of {} ; a {w} star ; a {w}-star rated ; p is rated {} ; p has a {k} of {} ; p has been rated {} ; p has a {w} star rating ; c customers rate it {} ; c the {k} is {} ; c it got {w} stars
low ; poor > a poorly rated ; a low rated ; b with a low {k} ; p has a low {k} ; p is not well rated ; p has poor reviews ; c the {k} is low ; c customers do not rate it highly
average ; medium > a average rated ; b with an average {k} ; p has an average {k} ; p is rated average ; c the {k} is average
high ; excellent > a highly rated ; a well rated ; b with a high {k} ; p has a high {k} ; p is highly rated ; p has excellent reviews ; c the {k} is high ; c customers rate it highly

@ for children, suitable for families, kids allowed
yes > a child-friendly ; a kid-friendly ; b for the whole family ; b for families ; p is child friendly ; p is good for children ; p welcomes kids ; p is suitable for families ; c children are welcome ; c bring the kids
no > a adults-only ; b for adults only ; b not meant for children ; p is not child friendly ; p is not good for children ; p does not suit families ; c children are not welcome ; c it is not for kids

@ style, make, design
Danish ; Turkish ; Korean ; Swiss ; Brazilian ; Polish ; Scottish ; Persian ; modern ; classic > a {} ; a {}-style ; b in the {} style ; b of {} make ; p is {} in style ; p has a {} {k} ; p offers {} {k} ; c the {k} is {}

@ maker, brand, manufacturer, supplier
<org> ; <name> > b by {} ; b from {} ; b made by {} ; p is made by {} ; p comes from {} ; p is a product of {} ; c {} makes it ; c the {k} is {}

@ owner, manager, contact, head
<person> > b run by {} ; b owned by {} ; b of {} ; p is run by {} ; p belongs to {} ; p is in the hands of {} ; c {} is the {k} ; c {} runs it

@ opened, founded, since, year
<year> > b from {} ; b that dates from {} ; p dates from {} ; p goes back to {} ; p has existed since {} ; c it all began in {}

@ colour, color, finish
red ; dark green ; blue ; black ; white ; grey ; yellow ; silver ; pale pink > a {} ; b in {} ; p is {} ; p comes in {} ; p is available in {} ; c the {k} is {}

@ material, made of
oak ; steel ; cotton ; leather ; glass ; wool ; bamboo ; copper ; clay > a {} ; b made of {} ; b of {} ; p is made of {} ; p consists of {} ; c the {k} is {}

@ size, capacity, seats, rooms
<small> ; <small> > b with {} {k} ; b of {k} {} ; p has {} {k} ; p offers {} {k} ; c there are {} {k} ; c the {k} is {}
small ; large ; tiny ; huge ; medium-sized > a {} ; p is {} ; p is {} in size ; c the size is {}

@ weight, length, height, range
<number> kg ; <decimal> m ; <small> cm ; <number> km > b with a {k} of {} ; b of {} ; p has a {k} of {} ; p measures {} ; c the {k} is {} ; c its {k} is {}

@ topic, subject, focus, known for
<word> ; <word> and <word> ; <title> > b known for {} ; b with {} ; b about {} ; p is known for {} ; p offers {} ; p deals with {} ; p specialises in {} ; c the {k} is {} ; c people like its {}

@ open from, starts, departure, begins
<time> ; <hour> ; at <time> > b starting at {} ; p opens at {} ; p starts at {} ; p is ready from {} ; c it starts at {} ; c the time to come is {}

@ date, day, next date
<date> ; <date> > b on {} ; p is on {} ; p takes place on {} ; p is planned for {} ; c the {k} is {}

@ from, origin, home, country
<place> ; <name> > b from {} ; p comes from {} ; p is from {} ; p has its origin in {} ; c {} is where it comes from

@ phone, number, code, reference
<code> ; <number> > b with the {k} {} ; p has the {k} {} ; p can be reached under {} ; c the {k} is {} ; c ask for {}

@ waterproof, portable, heated, furnished, insured, washable, electric, illustrated, foldable, vegan, refundable, licensed, certified, handmade
yes > a {k} ; p is {k} ; p is also {k} ; c it is {k}
no > a non-{k} ; p is not {k} ; c it is not {k}

@ parking, garden, delivery, warranty, discount, wifi, insurance, lift, balcony
yes ; available ; included > b with {k} ; p has {k} ; p offers {k} ; p comes with {k} ; c {k} is available ; c there is {k}
no ; none ; not available > b without {k} ; p has no {k} ; p offers no {k} ; p comes without {k} ; c there is no {k}

@ name of <word>, main <word>, <word> name, <word>
<name> ; <word> ; <person> ; <number> ; <title> ; <small> <word> > b with {} as {k} ; b with the {k} {} ; p has {} as its {k} ; p has the {k} {} ; c the {k} is {} ; c its {k} is {} ; c {} is the {k}
"""

# Kinds of things: nouns | patterns of their names. Any attribute may go with any kind: odd pairs (a vegan tram) leave
# nothing to guess, so only the record tells what to say.
_KINDS = """
flat, house, cottage, apartment, bungalow | the <title> ; <title> ; <name> House ; <name> Cottage
plumber, tutor, gardener, dentist, photographer, babysitter | <person> ; <name> and <name> ; <org>
phone, laptop, camera, printer, radio, watch | <code> ; <name> <small> ; the <title>
workshop, garage, laundry, print shop, repair shop | <org> ; the <title> ; <name>'s
bicycle, car, van, scooter, boat, tractor | <code> ; <name> <code> ; <title>
book, comic, magazine, guide, atlas | the <title> ; <title> ; <name>
course, class, workshop, seminar | <title> ; the <title> ; <name> <small>
jacket, pair of boots, hat, tent, rucksack | <name> ; <title> ; <code>
sofa, chair, table, lamp, bed, wardrobe | <name> ; the <title> ; <code>
bridge, tower, statue, fountain, well | the <title> ; <name> Bridge ; <name> Tower
farm, mill, mine, factory, vineyard | <name> Farm ; the <title> ; <org>
school, nursery, academy, college | the <title> ; <org> ; <name> School
bus line, train, ferry, tram | <code> ; the <title> ; <small>
dog, horse, cat, parrot, pony | <name> ; <name> ; <title>
game, puzzle, toy, card game | <title> ; the <title>
band, choir, orchestra, dance group | the <title> ; <title> ; <name> and <name>
program, app, website, database | <name> ; <title> ; <code>
job, post, internship, vacancy | <title> ; <code>
film, series, documentary, play | the <title> ; <title>
garden tool, drill, ladder, pump | <code> ; <name> <small>
"""

_KIND_OF_VALUE = re.compile(r"<(\w+)>")
_TWO_ARTICLES = re.compile(r"\b[Tt]he The ")
_NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Case:
    """Some values of an attribute and the phrases that state them, by role."""

    values: tuple[str, ...]  # patterns
    phrases: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Trait:
    """One attribute: the keys it goes by and its cases."""

    keys: tuple[str, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of thing: its nouns and the patterns of its names."""

    nouns: tuple[str, ...]
    names: tuple[str, ...]


def read_traits() -> list[Trait]:
    """Return all attributes of the table; the last one has a made-up key."""
    return [_trait(block.strip().split("\n")) for block in _ATTRIBUTES.strip().split("\n\n")]


def read_kinds() -> list[Kind]:
    """Return all kinds of things."""
    lines = (line.split(" | ") for line in _KINDS.strip().split("\n"))
    return [Kind(tuple(nouns.split(", ")), _split(names)) for nouns, names in lines]


def fill(pattern: str, maker: ValueMaker) -> str:
    """Return a pattern with every `<kind>` replaced by a value of that kind; no article stands twice."""
    filled = _KIND_OF_VALUE.sub(lambda found: maker.make(found.group(1)), pattern)
    return _TWO_ARTICLES.sub("the ", filled)


def number_word(value: str) -> str:
    """Return the number a value begins with, as a word up to ten (`3 out of 5` gives `three`); else the value."""
    first = value.split(" ")[0]
    return _NUMBER_WORDS[int(first) - 1] if first.isdigit() and 1 <= int(first) <= 10 else first


def _trait(lines: list[str]) -> Trait:
    return Trait(tuple(lines[0].removeprefix("@ ").split(", ")), tuple(_case(line) for line in lines[1:]))


def _case(line: str) -> Case:
    values, said = line.split(" > ")
    phrases = _split(said)
    return Case(_split(values), {role: tuple(p[2:] for p in phrases if p[0] == role) for role in ROLES})


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(" ; "))
