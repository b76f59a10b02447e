import itertools
import random

import pytest

from foreword.pretrain.copying.brief_domains import fill, number_word, read_kinds, read_traits
from foreword.pretrain.copying.briefs import Brief, Field, Teller, brief_documents
from foreword.pretrain.copying.domains import read_domains
from foreword.pretrain.copying.echoes import echo_documents, facts
from foreword.pretrain.copying.formats import formats, write_key
from foreword.pretrain.copying.labels import label_documents, span_documents
from foreword.pretrain.copying.records import Narrator, draw_record, record_documents
from foreword.pretrain.copying.values import Lexicon, ValueMaker
from foreword.pretrain.pack import plain

FORBIDDEN = {"restaurant", "pub", "café", "cafe", "bar", "hotel", "museum", "venue", "coffee shop"}
TEXT = (
    "In 1912 the ship met Arne Dahl near Bergen. The captain of the Fram, an old man, said little.\n"
    "They had sailed 340 miles to find Colin Archer. Nobody in Oslo believed that the story was true."
)


def generators(seed: int):
    lexicon, documents = Lexicon(), {"wiki_en": [TEXT, TEXT.replace("Dahl", "Berg")], "talk": [TEXT]}
    return {
        "records": record_documents(random.Random(seed), lexicon),
        "briefs": brief_documents(random.Random(seed), lexicon),
        "echoes": echo_documents(random.Random(seed), documents["wiki_en"]),
        "labels": label_documents(random.Random(seed), lexicon, documents),
        "spans": span_documents(random.Random(seed), lexicon),
    }


@pytest.mark.parametrize("name", ["records", "briefs", "echoes", "labels", "spans"])
def test_documents_follow_from_the_seed_and_vary(name: str):
    once, again, other = (list(itertools.islice(generators(seed)[name], 60)) for seed in (1, 1, 2))
    assert once == again and once != other
    assert len(set(once)) > 30 and all(plain(text).strip() for text in once)


def test_only_what_is_told_of_a_brief_is_learned():
    for document in itertools.islice(generators(3)["briefs"], 40):
        assert [learned for _, learned in document] == [False, True] * (len(document) // 2)
        assert all(not text.strip().endswith((".", "?")) for text, learned in document if not learned)
        assert "The The" not in plain(document)


def test_every_sentence_states_every_value():
    rng = random.Random(0)
    maker = ValueMaker(rng, Lexicon())
    for domain in read_domains():
        for _ in range(20):
            record = draw_record(rng, maker, domain, domain.attributes)
            text = Narrator(rng).state(record)
            stated = [value for _, value in record.values if value not in ("yes", "no")]
            # A sentence opens with a capital letter, whatever it opens with.
            assert all(value.lower() in text.lower() for value in [record.name, *stated]), (record, text)


def test_a_brief_states_every_field_once():
    rng = random.Random(0)
    maker, traits = ValueMaker(rng, Lexicon()), read_traits()
    for trait in traits:
        for case in trait.cases:
            for _ in range(20):
                key = fill(rng.choice(trait.keys), maker)
                field = Field(key, fill(rng.choice(case.values), maker), case)
                other = Field("maker", "Quorl Ltd", traits[6].cases[0])
                text = Teller(rng).tell(Brief("lamp", "Zuvex", (field, other), typed=True))
                assert text.count("Quorl Ltd") == 1 and text.count("Zuvex") >= 1, text
                said = [p for _, p in field.phrases("ablpc")]
                stems = [p.removeprefix("is ").removeprefix("has ") for p in said]
                assert any(p.lower() in text.lower() for p in stems), (field, text)
    assert traits[6].keys[0] == "maker"


def test_a_field_has_a_way_to_be_said_everywhere():
    for trait in read_traits():
        for case in trait.cases:
            assert case.phrases["p"], trait  # the role that everything falls back to
    assert [number_word(v) for v in ("5 out of 5", "12 cm", "red")] == ["five", "12", "red"]


def test_yes_and_no_are_stated_differently():
    domain = next(d for d in read_domains() if "phone" in d.nouns)
    attribute = next(a for a in domain.attributes if a.key == "waterproof")
    assert attribute.predicate("yes", 0) == "is waterproof"
    assert attribute.predicate("no", 0) == "is not waterproof"


def test_no_domain_is_a_venue_or_an_evaluation_task():
    assert not {noun for domain in read_domains() for noun in domain.nouns} & FORBIDDEN
    assert not {noun for kind in read_kinds() for noun in kind.nouns} & FORBIDDEN
    keys = {attribute.key.replace(" ", "").lower() for domain in read_domains() for attribute in domain.attributes}
    keys |= {key.replace(" ", "").lower() for trait in read_traits() for key in trait.keys}
    assert not keys & {"eattype", "familyfriendly", "customerrating", "pricerange", "near"}


def test_formats_keep_all_values():
    pairs = [("name", "Fram"), ("built", "1892"), ("home port", "Larvik")]
    for layout in formats():
        written = layout(pairs)
        assert all(value in written for _, value in pairs)


def test_key_casings():
    assert [write_key("birth place", c) for c in ("plain", "camel", "snake", "dash", "upper", "title")] == [
        "birth place",
        "birthPlace",
        "birth_place",
        "birth-place",
        "BIRTH PLACE",
        "Birth Place",
    ]


def test_facts_are_names_numbers_and_quotations():
    found = facts('In 1912 the ship met Arne Dahl near Bergen, who said "we are too late".')
    assert found == {"names": ["Arne Dahl", "Bergen"], "numbers": ["1912"], "quotes": ["we are too late"]}
