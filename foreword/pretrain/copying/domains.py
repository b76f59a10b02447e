"""Record domains: the attributes a thing can have, and the ways a sentence states each of them.

A line is `key = kind = phrase ; phrase ...`, `{}` being the value; a yes/no attribute gives `phrase / negated phrase`.
No domain describes eating and drinking places, museums or other venues: those are the demo task's and E2E's.
"""

from dataclasses import dataclass

_TABLE = """
book, novel, volume | title | it
author = person = was written by {} ; is by {} ; is the work of {}
publisher = org = was published by {} ; came out with {} ; is sold by {}
year = year = appeared in {} ; was first printed in {} ; dates from {}
genre = mystery|romance|satire|travel writing|science fiction|history = is a work of {} ; belongs to the genre of {}
pages = small = has {} pages ; runs to {} pages
setting = place = is set in {} ; takes place in {}
illustrated = yes|no = is illustrated ; has pictures / has no pictures ; is not illustrated

scientist, writer, painter, lawyer | person | they
birth place = place = was born in {} ; comes from {} ; is a native of {}
birth date = date = was born on {} ; has a birthday recorded as {}
alma mater = org = studied at {} ; graduated from {} ; was educated at {}
employer = org = works for {} ; is employed by {} ; has a post at {}
spouse = person = is married to {} ; married {}
known for = title = is known for {} ; became famous with {}
language = name = speaks {} ; writes in {}

company, firm, business | org | it
founder = person = was founded by {} ; was started by {} ; goes back to {}
founded = year = was founded in {} ; has existed since {} ; opened its doors in {}
headquarters = place = is based in {} ; has its head office in {} ; is run from {}
employees = number = has {} employees ; employs {} people ; gives work to {} people
product = word = makes {} ; sells {} ; is known for its {}
revenue = money = had a revenue of {} ; earned {} last year
listed = yes|no = is listed on the stock exchange ; is publicly traded / is privately held ; is not traded publicly

river, stream | name | it
source = place = rises in {} ; has its source near {} ; begins at {}
mouth = place = flows into {} ; ends at {} ; empties at {}
length = n:km = is {} long ; runs for {} ; has a length of {}
tributary = name = is fed by the {} ; takes in the {} ; is joined by the {}
discharge = decimal = carries {} cubic metres a second
navigable = yes|no = is navigable ; can be used by ships / cannot be used by ships ; is not navigable

flight, connection | code | it
airline = org = is operated by {} ; is flown by {} ; belongs to {}
origin = place = leaves from {} ; departs from {} ; starts in {}
destination = place = goes to {} ; lands in {} ; is bound for {}
departure = time = departs at {} ; takes off at {} ; leaves at {}
price = money = costs {} ; can be booked for {} ; is offered for {}
stops = small = has {} stops ; makes {} stops on the way
refundable = yes|no = is refundable ; can be cancelled for free / is not refundable ; cannot be refunded

phone, camera, laptop, lamp | code | it
maker = org = is made by {} ; is a product of {} ; comes from {}
price = money = costs {} ; sells for {} ; is priced at {}
weight = n:grams = weighs {} ; has a weight of {}
colour = red|black|silver|green|white|blue = comes in {} ; is {} ; is available in {}
rating = 1 out of 5|2 out of 5|3 out of 5|4 out of 5|5 out of 5|low|average|high = is rated {} ; has a {} rating
battery life = n:hours = lasts {} on one charge ; runs for {}
waterproof = yes|no = is waterproof ; can be used in the rain / is not waterproof ; must be kept dry

tower, castle, bridge, station | title | it
architect = person = was designed by {} ; is the work of {} ; was drawn up by {}
location = place = stands in {} ; is in {} ; can be found in {}
completed = year = was completed in {} ; was finished in {} ; dates from {}
height = n:metres = is {} high ; rises to {} ; has a height of {}
owner = org = is owned by {} ; belongs to {}
material = granite|brick|steel|timber|marble|concrete = is built of {} ; is made of {}
open to visitors = yes|no = is open to visitors ; can be visited / is closed to visitors ; cannot be visited

dog, horse, cat, parrot | name | it
owner = person = belongs to {} ; is owned by {} ; lives with {}
breed = word = is a {} ; is of the {} breed
age = small = is {} years old ; has reached the age of {}
home = place = lives in {} ; comes from {}
favourite food = word = likes {} ; loves to eat {} ; is fond of {}
vaccinated = yes|no = is vaccinated ; has had its shots / is not vaccinated ; has not had its shots

film, movie, documentary | title | it
director = person = was directed by {} ; is a film by {} ; was made by {}
star = person = stars {} ; features {} ; has {} in the lead
released = date = was released on {} ; came out on {} ; opened on {}
running time = n:minutes = lasts {} ; runs for {} ; is {} long
studio = org = was produced by {} ; comes from the studio {}
budget = money = cost {} ; had a budget of {}
suitable for children = yes|no = is suitable for children ; can be seen by children / is not suitable for children

school, college, academy | org | it
head = person = is led by {} ; has {} as its head ; is run by {}
town = place = is in {} ; is located in {} ; serves the town of {}
pupils = number = has {} pupils ; teaches {} pupils
opened = year = opened in {} ; was set up in {} ; has taught since {}
motto = title = has the motto {} ; goes by the motto {}
boarding = yes|no = takes boarders ; offers boarding / has no boarders ; does not offer boarding

club, team, side | org | it
coach = person = is coached by {} ; is trained by {} ; has {} as coach
ground = title = plays at {} ; has its home ground at {}
league = title = plays in the {} ; belongs to the {}
founded = year = was founded in {} ; was formed in {}
captain = person = is captained by {} ; is led on the field by {}
capacity = number = has room for {} spectators ; can seat {} people

program, library, application | name | it
developer = org = is developed by {} ; was written by {} ; is maintained by {}
language = name = is written in {} ; uses {}
license = code = is released under the {} licence ; uses the {} licence
latest version = decimal = is now at version {} ; has reached version {}
released = year = was first released in {} ; appeared in {}
platform = name = runs on {} ; needs {} ; works with {}
free = yes|no = is free ; costs nothing / is not free ; has to be paid for

song, album, symphony | title | it
composer = person = was composed by {} ; was written by {}
performer = person = was recorded by {} ; is performed by {} ; is sung by {}
released = year = came out in {} ; was released in {}
label = org = appeared on {} ; was issued by {}
length = n:minutes = lasts {} ; is {} long
key = A minor|C major|D minor|E flat major|G major = is in {} ; was set in {}

lecture, meeting, concert, race | title | it
speaker = person = is given by {} ; has {} as its main guest
date = date = takes place on {} ; is on {} ; is planned for {}
time = time = starts at {} ; begins at {}
place = place = is held in {} ; happens in {}
organiser = org = is organised by {} ; is put on by {}
tickets = money = costs {} to attend ; has tickets at {}
public = yes|no = is open to all ; is open to the public / is for members only ; is not open to the public

ship, yacht, ferry | title | it
captain = person = is commanded by {} ; sails under {}
home port = place = has its home port at {} ; is based at {}
built = year = was built in {} ; was launched in {}
tonnage = number = displaces {} tons ; has a tonnage of {}
builder = org = was built by {} ; came from the yard of {}
cargo = word = carries {} ; transports {}

town, village, city | place | it
country = name = is in {} ; belongs to {} ; lies in {}
population = number = has {} inhabitants ; is home to {} people ; counts {} people
mayor = person = has {} as mayor ; is governed by {}
area = n:square kilometres = covers {} ; has an area of {}
elevation = n:metres = lies {} above the sea ; is at {} above sea level
industry = word = lives from {} ; is known for {}
twin town = place = is twinned with {} ; has a partner in {}

cake, soup, stew, bread | title | it
main ingredient = word = is made with {} ; contains {} ; is based on {}
cook = person = was invented by {} ; is a recipe by {}
origin = place = comes from {} ; is typical of {}
baking time = n:minutes = takes {} ; has to cook for {}
servings = small = serves {} people ; is enough for {}
spicy = yes|no = is spicy ; is hot / is mild ; is not spicy

game, puzzle | title | it
designer = person = was designed by {} ; was thought up by {}
players = small = is for {} players ; can be played by {} people
publisher = org = is published by {} ; is sold by {}
playing time = n:minutes = takes {} ; lasts about {}
age = small = is for players from {} years ; suits players over {}

plant, tree, flower | name | it
family = name = belongs to the family {} ; is one of the {}
native to = place = grows in {} ; is native to {} ; comes from {}
height = n:cm = reaches {} ; grows to {}
flowers = red|white|yellow|purple|pale blue = has {} flowers ; blooms in {}
discovered by = person = was discovered by {} ; was first described by {}
poisonous = yes|no = is poisonous ; must not be eaten / is harmless ; is not poisonous

car, train, bicycle, aircraft | code | it
maker = org = is built by {} ; comes from {} ; is made by {}
top speed = n:km/h = reaches {} ; has a top speed of {} ; can do {}
engine = code = is powered by the {} ; has the {} engine
price = money = costs {} ; has a price of {}
seats = small = has {} seats ; carries {} people
electric = yes|no = is electric ; runs on a battery / burns fuel ; is not electric

war, battle, treaty | title | it
date = date = took place on {} ; is dated {}
place = place = happened at {} ; took place near {}
commander = person = was led by {} ; was commanded by {}
winner = name = was won by {} ; ended in favour of {}
losses = number = cost {} lives ; left {} dead

player, runner, swimmer | person | they
club = org = plays for {} ; is under contract with {} ; competes for {}
position = goalkeeper|forward|defender|captain|reserve = plays as {} ; is used as {}
number = small = wears number {} ; has the number {}
height = n:cm = is {} tall ; measures {}
nationality = name = represents {} ; plays for the country of {}
goals = small = has scored {} times ; scored {} goals

planet, star, comet | name | it
discoverer = person = was discovered by {} ; was found by {}
distance = n:light years = is {} away ; lies {} from us
mass = decimal = has a mass of {} ; weighs {} times as much as the Earth
constellation = name = is in the constellation {} ; belongs to {}
temperature = n:degrees = has a temperature of {} ; is {} hot

letter, order, invoice | code | it
customer = person = was sent to {} ; is for {} ; was placed by {}
amount = money = comes to {} ; amounts to {} ; is over {}
date = date = is dated {} ; was written on {}
item = word = is for {} ; concerns {}
status = open|paid|cancelled|late|in dispute = is {} ; is marked as {}
address = place = goes to {} ; is addressed to {}

mountain, lake, island, glacier | name | it
country = name = is in {} ; belongs to {}
height = n:metres = is {} high ; lies at {}
first ascent = year = was first explored in {} ; was reached in {}
explorer = person = was first described by {} ; was explored by {}
nearest town = place = is close to {} ; lies near {} ; is not far from {}
protected = yes|no = is protected ; is a nature reserve / is not protected

course, class | title | it
teacher = person = is taught by {} ; is led by {}
room = code = meets in {} ; takes place in {}
day = Monday|Tuesday|Wednesday|Thursday|Friday = is on {} ; meets every {}
fee = money = costs {} ; has a fee of {}
level = beginner|intermediate|advanced = is at {} level ; is meant for the {} level
credits = small = gives {} credits ; is worth {} credits
"""


@dataclass(frozen=True)
class Attribute:
    """One property: its key, the kind of its values (`ValueMaker.make`), and the predicates that state it."""

    key: str
    kind: str
    phrases: tuple[str, ...]
    negations: tuple[str, ...] = ()  # of a yes/no attribute

    def predicate(self, value: str, index: int) -> str:
        """Return the `index`-th way (modulo their number) to say that the subject has this value."""
        choices = self.negations if self.negations and value == "no" else self.phrases
        return choices[index % len(choices)].format(value)


@dataclass(frozen=True)
class Domain:
    """A kind of thing: its nouns, the kind of its names, its pronoun, its attributes."""

    nouns: tuple[str, ...]
    name_kind: str
    pronoun: str
    attributes: tuple[Attribute, ...]


def read_domains() -> list[Domain]:
    """Return all domains of the table."""
    return [_domain(block.strip().split("\n")) for block in _TABLE.strip().split("\n\n")]


def _domain(lines: list[str]) -> Domain:
    nouns, name_kind, pronoun = (part.strip() for part in lines[0].split(" | "))
    return Domain(tuple(nouns.split(", ")), name_kind, pronoun, tuple(_attribute(line) for line in lines[1:]))


def _attribute(line: str) -> Attribute:
    key, kind, said = (part.strip() for part in line.split(" = "))
    positive, _, negative = said.partition(" / ") if kind == "yes|no" else (said, "", "")
    split = (tuple(p.strip() for p in part.split(" ; ") if p.strip()) for part in (positive, negative))
    return Attribute(key, kind, *split)
