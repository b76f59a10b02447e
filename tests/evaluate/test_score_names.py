"""What metrics call their scores is what they return."""

import numpy as np
import pytest

from foreword.errors import ConfigError
from foreword.evaluate.metrics import BY_GROUP, STATISTICS, captions, score, statistics
from foreword.tasks.scores import LABEL_METRICS, LOWER_IS_BETTER, METRICS, SCORE_NAMES, score_names

LEARNED = ("bert_score", "bleurt")  # they would fetch a model


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """Two Java programs are slow to start and have no say in names."""
    monkeypatch.setattr(captions, "ptb_tokens", list)
    monkeypatch.setattr(captions, "meteor_rows", lambda outputs, references: np.ones((len(outputs), 2)))
    monkeypatch.setattr(captions, "meteor_scores", lambda sums: sums[:, 0])


def test_every_metric_has_names():
    assert set(SCORE_NAMES) == set(STATISTICS) | set(BY_GROUP)
    assert set(STATISTICS) == METRICS and METRICS > LABEL_METRICS
    assert "TER" in LOWER_IS_BETTER
    assert score_names(["bleu", "e2e_bleu", "squad"]) == ["BLEU", "F1", "EM"]


@pytest.mark.parametrize("metric", sorted(set(SCORE_NAMES) - set(LEARNED)))
def test_the_names_are_those_of_the_scores(metric):
    """Two records, so that the metrics of two labels find both."""
    keys = [{"group": "1", "label": True}, {"group": "2", "label": True}]
    texts = ["True", "False"]
    tables, skipped = statistics((metric,), texts, [[text] for text in texts], tuple(texts), keys)
    assert not skipped  # `make test` installs every metric's library
    assert set(tables[metric].scores()) - {"illegal"} == set(SCORE_NAMES[metric])


def test_two_metrics_with_a_score_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="BLEU"):
        score(["bleu", "e2e_bleu"], ["a b c d"], [["a b c d"]])
