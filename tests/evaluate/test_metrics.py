"""Metrics on hand-worked cases, edge cases and against the libraries; the mapping of names and its errors."""

import math
import subprocess
import sys

import numpy as np
import pytest

from foreword.errors import ConfigError, DataError, MissingExtraError
from foreword.evaluate.metrics import METRICS, STATISTICS, illegal_rate, score, statistics
from foreword.evaluate.metrics import java as java_programs
from foreword.evaluate.metrics.labels import MOST_CLASSES
from foreword.evaluate.metrics.ngrams import closest_length, e2e_nist
from foreword.evaluate.metrics.overlap import rouge_as_published, rouge_values
from foreword.evaluate.metrics.triples import normalise

TEXT = ["the cat sat on the mat .", "a dog barked", "it is raining outside today"]
REFERENCES = [["The cat sat on a mat.", "There is a cat on the mat."], ["The dog barked."], ["It rains today."]]
FREE_TEXT = ["bleu", "chrf", "rouge", "e2e_bleu", "e2e_nist", "webnlg_bleu", "webnlg_ter", "dart_bleu", "exact_match"]


@pytest.mark.parametrize("name", FREE_TEXT)
def test_a_perfect_output_scores_best_and_order_does_not_matter(name):
    perfect = METRICS[name]([texts[0] for texts in REFERENCES], REFERENCES)
    some = METRICS[name](TEXT, REFERENCES)
    turned = METRICS[name](TEXT[::-1], REFERENCES[::-1])
    for key, value in some.items():
        assert perfect[key] < value if key == "TER" else perfect[key] > value
        assert turned[key] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", [n for n in FREE_TEXT if n not in ("exact_match",)])
def test_empty_outputs_score_worst_without_a_warning(name):
    for value in METRICS[name](["", "", ""], REFERENCES).values():
        assert value == pytest.approx(1.0 if name.endswith("ter") else 0.0, abs=0.05 if name.endswith("ter") else 1e-6)


def test_e2e_bleu_counts_short_outputs_as_the_official_scorer_does():
    # Two outputs of 1 and 7 tokens: 4-gram total is (1 - 3) + (7 - 3) = 2, not 0 + 4.
    values = STATISTICS["e2e_bleu"](
        ["yes", "the cat sat on the mat ."], [["yes"], ["the cat sat on the mat ."]], ()
    ).values
    assert values.sum(0).tolist() == [8, 8, 6, 4, 2, 8, 6, 5, 4]


def test_the_closest_reference_is_the_shorter_of_two():
    assert closest_length(["a"] * 4, [["a"] * 6, ["a"] * 2, ["a"] * 7]) == 2


def test_nist_of_a_hand_worked_case():
    # References "a b" and "a c", 4 words: info(a) = log2(4/2) = 1, info(b) = log2(4/1) = 2, info(a b) = log2(2/1) = 1.
    # Output "a b" twice: unigrams gain (1 + 2) + (1 + 0) over 4 words, bigrams 1 over 2; lengths equal, no penalty.
    assert METRICS["e2e_nist"](["a b", "a b"], [["a b"], ["a c"]]) == {"NIST": pytest.approx(4 / 4 + 1 / 2)}
    short = e2e_nist(["a", "a"], [["a b"], ["a c"]]).scores()["NIST"]
    beta = -math.log(0.5) / math.log(1.5) ** 2
    assert short == pytest.approx(math.exp(-beta * math.log(0.5) ** 2) * 2 / 2)


def test_bleu_and_chrf_are_sacrebleus():
    from sacrebleu.metrics import BLEU, CHRF

    streams = [[texts[k] if k < len(texts) else None for texts in REFERENCES] for k in range(2)]
    assert METRICS["bleu"](TEXT, REFERENCES)["BLEU"] == pytest.approx(BLEU().corpus_score(TEXT, streams).score / 100)
    assert METRICS["chrf"](TEXT, REFERENCES)["chrF"] == pytest.approx(CHRF().corpus_score(TEXT, streams).score / 100)


def test_rouge_takes_the_best_reference_and_the_plain_mean():
    values = rouge_values(TEXT, REFERENCES)
    singles = [
        max(METRICS["rouge"]([t], [[r]])["ROUGE-2"] for r in refs) for t, refs in zip(TEXT, REFERENCES, strict=True)
    ]
    assert values[:, 1] == pytest.approx(singles)
    assert METRICS["rouge"](TEXT, REFERENCES)["ROUGE-L"] == pytest.approx(values[:, 2].mean())


def test_rouge_as_published_is_near_the_mean_and_repeatable():
    runs = [rouge_as_published(TEXT * 4, REFERENCES * 4, 6, np.random.default_rng(0)) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0]["ROUGE-1"] == pytest.approx(METRICS["rouge"](TEXT, REFERENCES)["ROUGE-1"], abs=0.03)


def test_webnlg_normalisation():
    assert normalise("Adolfo_Suárez–Barajas (4.5)") == "adolfo_suarez - barajas ( 4 . 5 )"


LABELS = ("entailment", "contradiction", "neutral")
GOLD = ["entailment", "entailment", "contradiction", "neutral", "neutral", "contradiction"]
GUESS = ["entailment", "neutral", "contradiction ", "banana", "neutral", ""]


def test_label_metrics_agree_with_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score

    guesses = [g.strip() or "(none)" for g in GUESS]
    references = [[g] for g in GOLD]
    found, skipped = score(("accuracy", "macro_f1"), GUESS, references, LABELS)
    assert found == {
        "accuracy": pytest.approx(accuracy_score(GOLD, guesses)),
        "illegal": pytest.approx(2 / 6),
        "macro_F1": pytest.approx(f1_score(GOLD, guesses, labels=list(LABELS), average="macro")),
    }
    assert skipped == {}
    two = ("no", "yes")
    gold, guess = ["yes", "no", "yes", "yes"], ["yes", "yes", "maybe", "no"]
    theirs = f1_score(gold, guess, labels=["yes"], average="macro")
    assert METRICS["f1"](guess, [[g] for g in gold], two)["F1"] == pytest.approx(theirs)


def test_a_label_that_never_occurs_counts_zero():
    assert METRICS["macro_f1"](["a", "b"], [["a"], ["b"]], ("a", "b", "c"))["macro_F1"] == pytest.approx(2 / 3)


def test_label_faults():
    with pytest.raises(DataError, match="f1 needs two labels"):
        METRICS["f1"](["a"], [["a"]], LABELS)
    with pytest.raises(DataError, match="none of the labels"):
        METRICS["accuracy"](["a"], [["banana"]], LABELS)


def test_a_thousand_different_references_cost_little_memory_or_are_refused():
    """A table of true by predicted class would take 8 GB here."""
    words = [f"answer {i}" for i in range(MOST_CLASSES + 1)]
    references, outputs = [[word] for word in words], [*words[:-1], "other"]
    table = STATISTICS["accuracy"](outputs, references, ())
    assert table.values.shape == (len(words), 3)
    assert table.scores() == {"accuracy": pytest.approx(1000 / 1001), "illegal": pytest.approx(1 / 1001)}
    with pytest.raises(DataError, match="macro_f1 without labels met 1,001 different references"):
        STATISTICS["macro_f1"](outputs, references, ())
    table = STATISTICS["macro_f1"](outputs, references, words)  # so many labels, but named
    assert table.values.nbytes < 20e6 and table.scores() == {"macro_F1": pytest.approx(1000 / 1001)}


def test_exact_match_takes_any_reference():
    assert METRICS["exact_match"](["a ", "b"], [["x", "a"], ["c"]]) == {"EM": 0.5}


def test_illegal_rate_is_none_for_free_text():
    assert illegal_rate(["a", "b"], ("a",)) == 0.5
    assert illegal_rate(["a", "b"], ()) is None


@pytest.mark.parametrize(
    ("predictions", "references", "said"),
    [
        ([], [], "no predictions"),
        (["a"], [["b"], ["c"]], "1 predictions for 2"),
        (["a"], [[]], "instance 1 has no reference"),
    ],
)
def test_bad_calls_are_errors(predictions, references, said):
    with pytest.raises(DataError, match=said):
        score(["bleu"], predictions, references)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'e2e_bleu'"):
        score(["e2e_blue"], ["a"], [["b"]])


def test_without_java_the_other_metrics_are_computed(monkeypatch):
    monkeypatch.setattr(java_programs.shutil, "which", lambda name: None)
    names = ("e2e_bleu", "e2e_nist", "e2e_meteor", "e2e_rouge_l", "e2e_cider")
    found, skipped = score(names, TEXT, REFERENCES)
    assert set(found) == {"BLEU", "NIST"}
    assert set(skipped) == set(names[2:])
    assert all("Java" in reason and "\n" not in reason for reason in skipped.values())


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingExtraError, match=r"ROUGE needs rouge_score: pip install 'foreword\[eval\]'"):
        METRICS["rouge"](TEXT, REFERENCES)
    assert set(statistics(["rouge", "bleu"], TEXT, REFERENCES)[1]) == {"rouge"}


def test_a_failing_program_is_one_line():
    with pytest.raises(DataError, match="it failed with exit code 3: broken"):
        java_programs.run_java(
            [sys.executable, "-c", "import sys; print('broken', file=sys.stderr); sys.exit(3)"], [], "it"
        )


def test_ptb_tokens_of_odd_texts(java):
    odd = ["", "...", "a ||| b", "two\nlines\u2028three", "Zoë's café (£30)!"]
    assert java_programs.ptb_tokens(odd) == ["", "", "a | | | b", "two lines three", "zoë 's café -lrb- # 30 -rrb-"]


def test_importing_evaluate_is_light():
    heavy = [
        "torch",
        "sacrebleu",
        "nltk",
        "sklearn",
        "datasets",
        "pyarrow",
        "pycocoevalcap",
        "rouge_score",
        "transformers",
    ]
    code = f"import sys, foreword.evaluate; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
