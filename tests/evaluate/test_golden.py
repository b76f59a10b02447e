"""The official scorers' values, to the digit (shared/data/metrics_golden)."""

import re
import unicodedata

import pytest

from foreword.evaluate.metrics import METRICS
from foreword.evaluate.metrics.triples import ter

DIGITS = 1e-14


def test_e2e_bleu_and_nist(e2e_golden):
    assert METRICS["e2e_bleu"](*e2e_golden) == {"BLEU": pytest.approx(0.7202928494322162, rel=DIGITS)}
    assert METRICS["e2e_nist"](*e2e_golden) == {"NIST": pytest.approx(7.788887609555574, rel=DIGITS)}


def test_e2e_bleu_is_sacrebleus(e2e_golden):
    from sacrebleu.metrics import BLEU

    outputs, references = e2e_golden
    widest = max(map(len, references))
    streams = [[texts[k] if k < len(texts) else None for texts in references] for k in range(widest)]
    theirs = BLEU(lowercase=True, tokenize="13a").corpus_score(outputs, streams).score
    assert METRICS["e2e_bleu"](outputs, references)["BLEU"] == pytest.approx(theirs / 100, rel=DIGITS)


@pytest.mark.parametrize(
    ("metric", "name", "value"),
    [("e2e_meteor", "METEOR", 0.4801), ("e2e_rouge_l", "ROUGE_L", 0.7910), ("e2e_cider", "CIDEr", 2.3039)],
)
def test_e2e_caption_scores(java, e2e_golden, metric, name, value):
    assert round(METRICS[metric](*e2e_golden)[name], 4) == value


def test_webnlg_bleu(triples_golden):
    assert METRICS["webnlg_bleu"](*triples_golden("webnlg"))["BLEU"] * 100 == pytest.approx(
        58.06405434694361, rel=DIGITS
    )


def test_webnlg_meteor(java, triples_golden):
    assert METRICS["webnlg_meteor"](*triples_golden("webnlg"))["METEOR"] == pytest.approx(
        0.42968135727745266, rel=DIGITS
    )


def test_webnlg_ter_of_the_first_300(triples_golden):
    """681 edits over 3,762.33 words, sacrebleu's and tercom's; all 1,862 (0.377657) take minutes."""
    outputs, references = triples_golden("webnlg")

    def nfkd(text):
        split = " ".join(" ".join(re.split(r"(\W)", text)).split())
        return "".join(c for c in unicodedata.normalize("NFKD", split) if not unicodedata.combining(c)).lower()

    table = ter([nfkd(t) for t in outputs[:300]], [[nfkd(t) for t in texts] for texts in references[:300]])
    assert table.values.sum(0) == pytest.approx([681, 3762 + 1 / 3])
    assert table.scores()["TER"] == pytest.approx(0.18100469566758212)


def test_dart_bleu(triples_golden):
    assert METRICS["dart_bleu"](*triples_golden("dart"))["BLEU"] * 100 == pytest.approx(48.55675197582884, rel=DIGITS)


@pytest.mark.slow
def test_dart_meteor(java, triples_golden):
    assert METRICS["dart_meteor"](*triples_golden("dart"))["METEOR"] == pytest.approx(0.3922330037443794, rel=DIGITS)
