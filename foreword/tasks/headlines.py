"""Demo task `headlines`: a notice of two to five sentences from a made-up town or office → a headline of 3–9 words.

A notice scatters who, what and when over its sentences and mixes in greetings, thanks and asides that name other
people, places and days. The headline keeps the facts and none of the chatter; each notice has two or
three reference headlines.
"""

from dataclasses import dataclass

from foreword.tasks.lexicon import FIRST_NAMES, LICENCE, SURNAMES, Drafted, Draw, loader, sentence, several, words
from foreword.tasks.task import GenerationLimits, Task

STREETS = words(
    "Elm Street, Mill Road, Station Road, Harbour Lane, Quarry Hill, Tanner Row, Chapel Street, Weaver Lane, Castle "
    "Street, Orchard Road, Canal Street, Ferry Road, Beacon Hill, Potter Row, Granary Lane, Swan Street",
    "Cooper Lane, Lime Avenue, Gallows Hill, Viaduct Road, Saddler Row",
)
PLACES = words(
    "town library, sports hall, community garden, village school, car park, swimming baths, corn exchange, "
    "health centre, youth club, town museum, allotment shed, recycling yard, skate park, music room",
    "bowling green, ferry terminal, scout hut, town archive",
)
ROOMS = words(
    "canteen, third-floor kitchen, main lift, print room, front desk, bike store, roof terrace, meeting room two, "
    "post room, car park, east stairs, training room",
    "quiet room, loading bay, west entrance",
)
GROUPS = words(
    "rowing club, brass band, chess team, town choir, history society, hockey team, drama group, walking club, "
    "quiz team, cycling club, bell ringers, garden society",
    "fencing club, knitting circle, railway club",
)
TEAMS = words(
    "sales team, design team, finance office, support desk, legal team, planning office, data team, night shift",
    "press office, research group",
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "September",
    "October",
    "November",
    "December",
)
WORKS = words("pipe repairs, resurfacing, tree felling, cable laying, a film shoot, bridge checks", "drain cleaning")
ANIMALS = words("grey cat, brown terrier, tortoise, green parrot, white rabbit, black pony", "ginger kitten, barn owl")
CAUSES = words(
    "new benches, a lifeboat, the food bank, hospital toys, a school minibus, roof repairs", "a well, new drums"
)
COURSES = words("first aid, bread baking, bicycle repair, bird watching, sign language, bookkeeping", "stone carving")
SYSTEMS = words(
    "email, the payroll system, the phone line, the booking page, the file server, the door cards", "the intranet"
)
POSTS = words("head teacher, station master, chief librarian, finance director, head gardener", "harbour master")


@dataclass(frozen=True)
class Event:
    """A kind of news: `lead` says who and what, `when` gives the day, `detail` adds colour, `heads` are headlines.

    Braces name slots of the notice's facts; `{when}` is the day or date.
    """

    lead: tuple[str, ...]
    when: tuple[str, ...]
    detail: tuple[str, ...]
    heads: tuple[str, ...]


EVENTS = {
    "closure": Event(
        (
            "{street} will be closed to all traffic because of {works}",
            "drivers will have to avoid {street} during {works}",
        ),
        ("the barriers go up on {when}", "this starts on {when} and should take two days"),
        ("buses will take the long way round", "people on foot can still get through", "signs will show another route"),
        ("{street} to close {when} for {works}", "{works} to close {street} {when}", "{street} closed from {when}"),
    ),
    "lost": Event(
        (
            "the {animal} that {person} had been missing for a week has been found",
            "somebody has found {person}'s lost {animal}",
        ),
        ("it turned up in {street} on {when}", "it was spotted near {street} early on {when}"),
        ("it is hungry but well", "it had been asleep in a shed", "the owner had nearly given up hope"),
        (
            "{person}'s lost {animal} found in {street}",
            "{person} gets missing {animal} back",
            "{animal} found safe in {street} {when}",
        ),
    ),
    "fundraiser": Event(
        (
            "the {group} has raised {money} pounds for {cause}",
            "{money} pounds for {cause}: that is what the {group} collected",
        ),
        ("the money was counted on {when}", "the last coins came in on {when}"),
        (
            "most of it came from cake sales",
            "a raffle brought in a good part of it",
            "even the children gave pocket money",
        ),
        (
            "{group} raises {money} pounds for {cause}",
            "{cause}: {group} collects {money} pounds",
            "{group} gives {money} pounds towards {cause}",
        ),
    ),
    "moved": Event(
        (
            "the meeting of the {group} has been moved to the {place}",
            "the {group} will not meet in its usual room but in the {place}",
        ),
        ("please be there on {when} at {hour}", "it begins on {when} at {hour}"),
        ("the usual room is being painted", "the chairs are better there anyway", "there is room for everybody"),
        (
            "{group} meeting moves to {place} {when}",
            "{group} to meet in {place} {when}",
            "{when}: {group} meets in {place}",
        ),
    ),
    "reopening": Event(
        (
            "after weeks of building work the {place} is ready for visitors again",
            "the {place} will open its doors again",
        ),
        ("the first visitors can come in on {when}", "{person} will cut the ribbon on {when}"),
        ("the roof no longer leaks", "the walls are now a pale green", "the new heating works well"),
        ("{place} reopens on {when}", "{place} to open again {when}", "renewed {place} opens doors {when}"),
    ),
    "course": Event(
        (
            "{person} will teach a course in {course} at the {place}",
            "a course in {course} with {person} is coming to the {place}",
        ),
        ("the first lesson is on {when} at {hour}", "it starts on {when} and costs nothing"),
        ("bring a pen and warm clothes", "there are twelve places", "no experience is needed"),
        (
            "{person} to teach {course} at {place}",
            "{course} course starts {when}",
            "{place} offers {course} course from {when}",
        ),
    ),
    "outage": Event(
        ("{system} will not work for a few hours", "we have to switch off {system} for maintenance"),
        ("this will happen on {when} from {hour}", "expect the break on {when} after {hour}"),
        ("save your work before then", "the {team} has agreed to the time", "nothing will be lost"),
        (
            "{system} down {when} from {hour}",
            "{system} off for maintenance {when}",
            "no {bare_system} on {when} after {hour}",
        ),
    ),
    "repair": Event(
        ("the {room} is out of use", "nobody can use the {room} for the moment"),
        ("the repair is booked for {when}", "a fitter is coming on {when}"),
        ("a part has to be ordered first", "a pipe has burst", "we are sorry for the trouble"),
        ("{room} out of use until {when}", "{room} to be repaired {when}", "{room} closed, repair due {when}"),
    ),
    "farewell": Event(
        (
            "after {years} years {person} is leaving the {team}",
            "{person} says goodbye to the {team} after {years} years",
        ),
        ("the last day is {when}", "there will be cake on {when} at {hour}"),
        ("a card is going round", "the plants stay with us", "new plans include a long walk"),
        (
            "{person} leaves {team} after {years} years",
            "{team} bids {person} goodbye {when}",
            "{person} to leave {team} {when}",
        ),
    ),
    "appointment": Event(
        ("{person} has been chosen as the new {post}", "the new {post} is called {person}"),
        ("the new duties begin on {when}", "the first working day is {when}"),
        ("there were nine other names on the list", "the vote was quick", "a short speech is expected"),
        ("{person} named new {post}", "{person} to start as {post} {when}", "new {post} {person} starts {when}"),
    ),
    "victory": Event(
        ("the {group} has won the county cup", "the county cup goes to our {group} this year"),
        ("they beat {town} on {when}", "the final against {town} was played on {when}"),
        ("it rained from start to finish", "the cup will stand in the window", "the score was close"),
        (
            "{group} beats {town} in final {when}",
            "{group} wins county cup on {when}",
            "{town} beaten {when}, {group} wins cup",
        ),
    ),
    "deadline": Event(
        (
            "the {team} wants all {papers} earlier than planned",
            "all {papers} have to reach the {team} sooner than we said",
        ),
        ("the new date is {when}", "hand them in by {when}"),
        ("late ones will wait a month", "the form has not changed", "an email is enough"),
        ("{papers} due by {when}", "{team} wants {papers} by {when}", "new {when} deadline for {papers}"),
    ),
}
TOWNS = words(
    "Harwick, Ottermouth, Lower Denby, Saltcote, Brackenford, Westerby, Cold Ashing, Millbeck", "Thornsea, Upper Wick"
)
PAPERS = words(
    "travel claims, holiday requests, time sheets, room bookings, budget plans, training forms", "parking forms"
)

OPENERS = (
    "good morning everyone",
    "a quick word before the weekend",
    "dear neighbours, here is some news",
    "thanks to all who wrote in this week",
    "please pass this on to anyone without email",
)
# Asides name another person, street or day, so copying the first name or day in the text is not enough.
ASIDES = (
    "{other} sends greetings from a holiday in {other_town}",
    "the photograph on the board was taken by {other}",
    "last year's notice came out on a {other_day}, as some of you recall",
    "the bins in {other_street} are emptied on {other_day} as always",
    "{other} is still looking for a second-hand piano",
    "tea and biscuits will be there as usual",
    "whoever left a blue scarf on {other_day} can ask {other}",
    "questions can go to {other}",
    "the weather may well be wet",
    "{other} would like the big ladder back",
)


def headlines_task(rows: int = 2000, seed: int = 0) -> Task:
    """Return the task `headlines`: `rows` training notices with 2 or 3 headlines each; dev and test a tenth as many.

    About a fifth of the people, places and groups in dev and test never occur in train.
    """
    return Task(
        name="headlines",
        loader=loader("headlines", _draft, rows, seed),
        metrics=("rouge", "bleu"),
        generation=GenerationLimits(max_new_tokens=32),
        template="{notice} → a headline of 3 to 9 words",
        licence=LICENCE,
    )


def _draft(draw: Draw) -> Drafted:
    kind = draw.one(tuple(EVENTS))
    facts = _facts(draw)
    source = _notice(draw, EVENTS[kind], facts)
    heads = several(draw, lambda: _headline(draw.one(EVENTS[kind].heads), facts), 2, 3)
    return Drafted(source, source, heads, {"event": kind})


def _person(draw: Draw) -> str:
    return f"{draw.word(FIRST_NAMES)} {draw.word(SURNAMES)}"


def _when(draw: Draw, day: str) -> str:
    return day if draw.chance(0.25) else f"{draw.number(1, 28)} {draw.one(MONTHS)}"


def _facts(draw: Draw) -> dict[str, str]:
    """Return a value for every slot; the asides' person, street, town and day differ from the news's."""
    day, other_day = draw.some(DAYS, 2)
    system = draw.word(SYSTEMS)
    facts = {
        "street": draw.word(STREETS),
        "person": _person(draw),
        "town": draw.word(TOWNS),
        "place": draw.word(PLACES),
        "room": draw.word(ROOMS),
        "group": draw.word(GROUPS),
        "team": draw.word(TEAMS),
        "works": draw.word(WORKS),
        "animal": draw.word(ANIMALS),
        "cause": draw.word(CAUSES),
        "course": draw.word(COURSES),
        "post": draw.word(POSTS),
        "papers": draw.word(PAPERS),
        "system": system,
        "bare_system": system.removeprefix("the "),
        "money": f"{draw.number(20, 980) * 5:,}",
        "years": str(draw.number(3, 41)),
        "hour": f"{draw.number(1, 11)} {draw.one(('am', 'pm'))}",
        "when": _when(draw, day),
    }
    others = {"other": _person(draw), "other_street": draw.word(STREETS), "other_town": draw.word(TOWNS)}
    clash = {others["other"], others["other_street"], others["other_town"]} & set(facts.values())
    return _facts(draw) if clash else facts | others | {"other_day": other_day}


def _notice(draw: Draw, event: Event, facts: dict[str, str]) -> str:
    """Return the notice: the lead, the day (not always next to it), and up to three sentences of detail and chatter."""
    news = [draw.one(event.lead), draw.one(event.when)]
    if draw.chance(0.5):
        news.insert(draw.number(1, 2), draw.one(event.detail))
    for aside in draw.some(ASIDES, draw.number(0, min(2, 4 - len(news)))):
        news.insert(draw.number(0, len(news)), aside)
    if len(news) < 5 and draw.chance(0.35):
        news.insert(0, draw.one(OPENERS))
    return " ".join(sentence(text.format(**facts)) for text in news)


def _headline(template: str, facts: dict[str, str]) -> str:
    """Return a headline: facts without articles, first letter in upper case."""
    bare = {slot: value.removeprefix("the ").removeprefix("a ") for slot, value in facts.items()}
    return sentence(template.format(**bare)).removesuffix(".")
