"""The bundled demo tasks: deterministic, leak-free, correctly realised, well written, and not trivial."""

import math
import re
from collections import Counter

import pytest

from foreword.data.records import digest
from foreword.errors import DataError
from foreword.evaluate.metrics import check_metrics
from foreword.tasks import headlines, sentiment, venues
from foreword.tasks.headlines import headlines_task
from foreword.tasks.lexicon import split_of, with_article
from foreword.tasks.sentiment import LABELS, sentiment_task
from foreword.tasks.venues import linearise, parse_source, unstated_fields, venues_task

MAKERS = {"venues": venues_task, "sentiment": sentiment_task, "headlines": headlines_task}
SPLITS = ("train", "dev", "test")
GOLDEN_TEST_DIGESTS = {"venues": "4f3d260ad5ef", "sentiment": "cce5a8065169", "headlines": "4b14d533c7a5"}


@pytest.fixture(scope="module")
def corpora():
    return {name: {split: make().load(split) for split in SPLITS} for name, make in MAKERS.items()}


def all_targets(corpus):
    return [target for records in corpus.values() for record in records for target in record.targets]


@pytest.mark.parametrize("name", MAKERS)
def test_same_seed_same_digest_and_another_seed_another(name):
    make = MAKERS[name]
    for split in SPLITS:
        first = digest(make(rows=60).load(split))
        assert first == digest(make(rows=60).load(split))
        assert first != digest(make(rows=60, seed=1).load(split))


def test_the_data_does_not_depend_on_the_python_process(corpora):
    # A change here changes every published demo number: mean it, and say so in the changelog.
    assert {name: digest(corpus["test"])[:12] for name, corpus in corpora.items()} == GOLDEN_TEST_DIGESTS


@pytest.mark.parametrize("name", MAKERS)
def test_sizes_ids_and_a_bad_size(name, corpora):
    assert [len(corpora[name][split]) for split in SPLITS] == [2000, 200, 200]
    assert [len(MAKERS[name](rows=7).load(split)) for split in SPLITS] == [7, 1, 1]
    assert len({record.id for records in corpora[name].values() for record in records}) == 2400
    with pytest.raises(DataError, match="rows = 0"):
        MAKERS[name](rows=0)


@pytest.mark.parametrize("name", MAKERS)
def test_their_metrics_exist(name):
    check_metrics(MAKERS[name]().metrics)


@pytest.mark.parametrize("name", MAKERS)
def test_splits_share_no_source_even_across_seeds(name, corpora):
    held = {record.source for split in ("dev", "test") for record in corpora[name][split]}
    assert len(held) == 400
    assert not held & {record.source for record in corpora[name]["train"]}
    assert not held & {record.source for record in MAKERS[name](seed=5).load("train")}


def test_venue_names_are_unseen_and_some_of_their_words_too(corpora):
    names = {split: {record.meta["fields"]["name"] for record in corpora["venues"][split]} for split in SPLITS}
    assert not names["train"] & names["dev"] and not names["train"] & names["test"] and not names["dev"] & names["test"]
    seen = {word for name in names["train"] for word in name.split()}
    new = [name for name in names["test"] if set(name.split()) - seen]
    assert 0.2 < len(new) / len(names["test"]) < 0.8
    assert all(split_of(name) == split for split in SPLITS for name in names[split])


@pytest.mark.parametrize("name", ["sentiment", "headlines"])
def test_dev_and_test_hold_words_that_train_never_shows(name, corpora):
    def vocabulary(split):
        return {word for record in corpora[name][split] for word in re.findall(r"\w+", record.source)}

    assert len((vocabulary("dev") | vocabulary("test")) - vocabulary("train")) > 20


@pytest.mark.parametrize("name", ["venues", "headlines"])
def test_at_least_95_percent_of_the_targets_are_distinct(name, corpora):
    for records in corpora[name].values():
        targets = [target for record in records for target in record.targets]
        assert len(set(targets)) >= 0.95 * len(targets)


def test_references_per_source(corpora):
    for records in corpora["venues"].values():
        assert {len(record.targets) for record in records} == {2, 3, 4, 5}
    for records in corpora["headlines"].values():
        assert {len(record.targets) for record in records} == {2, 3}
    for name in ("venues", "headlines"):
        for record in corpora[name]["train"]:
            assert len(set(record.targets)) == len(record.targets)


# Form ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_no_template_artefacts(name, corpora):
    texts = [*all_targets(corpora[name]), *(r.source for records in corpora[name].values() for r in records)]
    bad = re.compile(
        r"  |^\s|\s$|\n| [.,;!?]|[.,;!?]{2}|[{}]|\bNone\b|\b(\w+) \1\b|[\"“”\t]"
        r"|\ba [aeio]\w|\ban (?!hour)[^aeiou\W]\w|\ba u[^ns]",
        re.IGNORECASE,
    )
    assert [text for text in texts if bad.search(text)] == []


@pytest.mark.parametrize("name", MAKERS)
def test_text_is_clean_utf8(name, corpora):
    for text in all_targets(corpora[name]):
        assert text.isprintable() and set(text) <= set(map(chr, range(32, 127))) | {"é"}
        assert text.encode("utf-8").decode("utf-8") == text


def test_sentences_start_in_upper_case_and_end_with_a_stop(corpora):
    texts = all_targets(corpora["venues"])
    texts += [r.source for name in ("sentiment", "headlines") for rs in corpora[name].values() for r in rs]
    for text in texts:
        assert text[-1] in ".?!"
        # A one-letter word or "am." never ends our sentences in mid-air: every stop is followed by a capital or digit.
        assert all(nxt.isupper() or nxt.isdigit() for nxt in re.findall(r"[.?!] (\S)", f"{text} X"))


def test_articles():
    for phrase, article in {"apple": "an", "university park": "a", "one-way street": "a", "umbrella": "an"}.items():
        assert with_article(phrase) == f"{article} {phrase}"


# venues: realisation ---------------------------------------------------------------------------------------------


def test_every_attribute_is_realised_in_every_reference(corpora):
    for records in corpora["venues"].values():
        for record in records:
            for target in record.targets:
                assert unstated_fields(record.source, target) == [], (record.source, target)


def test_no_reference_states_a_value_the_table_does_not_have(corpora):
    words = {
        "price": {
            "free": r"\bfree\b|no charge|nothing",
            "cheap": r"(?<!\w)cheap|inexpensive|\blow\b|low-priced|not pay much",
            "moderate": r"moderate|mid-|average",
            "high": r"(?<!in)expensive|pricey|\bhigh\b|high-priced|good deal",
        },
        "dogs": {
            "allowed": r"welcomes dogs|dog-friendly|lets dogs|dogs are welcome|bring your dog|dogs may",
            "not allowed": r"not allow|dogs out|no dogs|outside|dogs at home",
        },
        "area": {area: area for area in (*venues.AREAS, *venues._AREAS_ELSEWHERE)},
        "closed": {day: day for day in venues.DAYS},
        "good for": {guests: f"(?<!older ){guests}\\b" for guests in venues.GUESTS},
        "rating": {f"{n} out of 5": f"({n}|{word}) out of (5|five)" for n, word in venues.NUMBERS.items()},
    }
    for record in corpora["venues"]["train"]:
        fields = record.meta["fields"]
        for target in record.targets:
            for field, values in words.items():
                said = {value for value, pattern in values.items() if re.search(pattern, target, re.I)}
                assert said == ({fields[field]} if field in fields else set()), (field, record.source, target)


def test_sources_hold_3_to_8_attributes_and_parse_back(corpora):
    sizes = Counter()
    for record in corpora["venues"]["train"]:
        fields = parse_source(record.source)
        sizes[len(fields)] += 1
        assert fields == record.meta["fields"] and linearise(fields) == record.source
        assert record.source.startswith("name : ") and list(fields)[1] == "kind"
    assert set(sizes) == {3, 4, 5, 6, 7, 8} and min(sizes.values()) > 200


def test_unstated_fields_finds_what_is_missing_and_takes_unknown_values():
    source = "name : The Copper Kettle | kind : café | price : cheap | rating : 4 out of 5 | opens : 8 am"
    assert unstated_fields(source, "The Copper Kettle is a pricey café rated four out of five.") == ["price", "opens"]
    assert unstated_fields(source, "an inexpensive Coffee House") == ["name", "rating", "opens"]
    assert unstated_fields("name : Ostrich | kind : zoo | price : two coins", "Ostrich, a zoo") == ["price"]


def test_references_open_and_read_in_many_ways(corpora):
    targets = [(r.meta["fields"], t) for r in corpora["venues"]["train"] for t in r.targets]
    shapes = Counter(tuple(t.replace(f["name"], "NAME").split()[:3]) for f, t in targets)
    assert len(shapes) > 100 and shapes.most_common(1)[0][1] < 0.25 * len(targets)


# sentiment -------------------------------------------------------------------------------------------------------


def test_labels_are_balanced_and_legal(corpora):
    for records in corpora["sentiment"].values():
        counts = Counter(record.targets[0] for record in records)
        assert set(counts) == set(LABELS) and counts["positive"] == counts["negative"]


def test_reviews_have_one_to_three_sentences_and_all_forms(corpora):
    records = corpora["sentiment"]["train"]
    assert {len(re.findall(r"\.(?= |$)", record.source)) for record in records} == {1, 2, 3}
    assert {record.meta["form"] for record in records} == {name for name, _, _ in sentiment.FORMS}


def test_polar_words_occur_under_both_labels(corpora):
    by_label = {label: Counter() for label in LABELS}
    for record in corpora["sentiment"]["train"]:
        by_label[record.targets[0]].update(set(re.findall(r"[\w-]+", record.source.lower())))
    for label, other in (LABELS, LABELS[::-1]):
        for word in sentiment.ADJECTIVES[label].seen:
            own, against = by_label[label][word], by_label[other][word]
            assert against / (own + against) > 0.2, word


def test_a_bag_of_words_learns_something_but_not_the_task(corpora):
    """Naive Bayes over single words: above chance, well below solved (measured 2026-11: see the bounds)."""
    counts = {label: Counter() for label in LABELS}
    for record in corpora["sentiment"]["train"]:
        counts[record.targets[0]].update(set(record.source.lower().split()))
    size = len(set().union(*counts.values()))

    def score(label, words):
        total = sum(counts[label].values()) + size
        return sum(math.log((counts[label][word] + 1) / total) for word in words)

    records = corpora["sentiment"]["test"] + corpora["sentiment"]["dev"]
    right = sum(max(LABELS, key=lambda lb: score(lb, set(r.source.lower().split()))) == r.targets[0] for r in records)
    assert 0.6 < right / len(records) < 0.85


# headlines -------------------------------------------------------------------------------------------------------


def test_headlines_are_short_and_notices_are_not(corpora):
    for records in corpora["headlines"].values():
        for record in records:
            assert 2 <= len(re.findall(r"[.](?= |$)", record.source)) <= 5, record.source
            for target in record.targets:
                assert 3 <= len(target.split()) <= 9, target
                assert target[0].isupper() or target[0].isdigit()


def test_headlines_use_the_news_and_never_the_asides(corpora):
    asides = re.compile("|".join(re.sub(r"\\{\w+\\}", ".*", re.escape(aside)) for aside in headlines.ASIDES), re.I)
    distracted = 0
    for record in corpora["headlines"]["train"]:
        sentences = re.split(r"(?<=\.) ", record.source)
        news = " ".join(text for text in sentences if not asides.search(text))
        chatter = " ".join(text for text in sentences if asides.search(text))
        named = re.findall(r"(?<!^)\b[A-Z][a-z]+", chatter)
        distracted += bool(named)
        for target in record.targets:
            names = re.findall(r"(?<=\s)[A-Z][a-z]+|\b\d[\d,]*", target)
            assert all(name in news for name in names), (record.source, target)
    assert distracted > 0.4 * len(corpora["headlines"]["train"])
