import json

import pytest

from foreword.data.records import Record, digest
from foreword.errors import ConfigError, DataError
from foreword.evaluate import check_forgetting, evaluate, evaluate_outputs, scores_json, write_scores
from foreword.evaluate.runner import sample
from foreword.tasks.task import GenerationLimits, Task

RECORDS = [Record(f"source {n}", (f"target number {n} is here", f"here is {n}"), str(n)) for n in range(20)]


def task(**changes):
    settings = {"metrics": ("bleu", "exact_match"), "generation": GenerationLimits(empty_output="Error")} | changes
    return Task("t", lambda split: RECORDS, **settings)


def echo(sources):
    return [f"target number {s.split()[1]} is here" for s in sources]


def test_a_generating_function_is_scored():
    scores, rows = evaluate(echo, task(), "dev", resamples=50)
    assert scores.metrics == {"BLEU": pytest.approx(1.0), "EM": 1.0}
    assert (scores.task, scores.split, scores.n, scores.illegal, scores.empty) == ("t", "dev", 20, None, 0.0)
    assert scores.intervals["EM"].low == scores.intervals["EM"].high == 1.0
    assert scores.data_digest == digest(RECORDS)
    assert rows[3] == {
        "id": "3", "source": "source 3", "targets": list(RECORDS[3].targets), "prediction": "target number 3 is here"
    }  # fmt: skip


def test_a_limit_draws_a_seeded_sample_in_order():
    first, again, other = sample(RECORDS, 5, 1), sample(RECORDS, 5, 1), sample(RECORDS, 5, 2)
    assert first == again != other
    assert [r for r in RECORDS if r in first] == first and len(first) == 5
    assert sample(RECORDS, 99, 0) == RECORDS
    assert evaluate(echo, task(), "dev", limit=4, resamples=0)[0].n == 4
    with pytest.raises(DataError, match="limit = 0"):
        sample(RECORDS, 0, 0)


def test_empty_outputs_become_the_tasks_word_and_are_counted():
    stand_in = [Record("a", ("Error",)), Record("b", ("b",))]
    scores = evaluate_outputs(task(metrics=("exact_match",)), stand_in, [" ", "b"], resamples=0)
    assert (scores.metrics, scores.empty, scores.intervals) == ({"EM": 1.0}, 0.5, {})


def test_illegal_outputs_are_wrong_and_reported_apart():
    records = [Record("a", ("yes",)), Record("b", ("no",)), Record("c", ("no",)), Record("d", ("no",))]
    labelled = task(metrics=("accuracy", "macro_f1"), labels=("no", "yes"))
    scores = evaluate_outputs(labelled, records, ["yes", "no", "nope", ""], resamples=100)
    assert scores.metrics["accuracy"] == 0.5 and scores.illegal == 0.5
    assert "illegal" not in scores.metrics and "illegal" not in scores.intervals


def test_unknown_metrics_are_found_before_anything_is_generated():
    def never(sources):
        raise AssertionError("generated")

    with pytest.raises(ConfigError, match="did you mean 'bleu'"):
        evaluate(never, task(metrics=("bluu",)), "dev")


def test_a_generator_must_give_one_text_each():
    with pytest.raises(DataError, match="19 texts for 20 sources"):
        evaluate(lambda sources: echo(sources)[1:], task(), "dev")


def test_skipped_metrics_are_noted(monkeypatch):
    from foreword.evaluate.metrics import java

    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    scores, _ = evaluate(echo, task(metrics=("e2e_bleu", "e2e_meteor")), "dev", resamples=0)
    assert set(scores.metrics) == {"BLEU"} and "Java" in scores.skipped["e2e_meteor"]


def test_files_are_deterministic_and_whole(tmp_path):
    written = []
    for name in ("a", "b"):
        scores, rows = evaluate(echo, task(), "dev", seed=3, resamples=30)
        path = write_scores(tmp_path / name, scores, rows, {"prompt": "sha"})
        written.append((path.read_bytes(), (path.parent / "predictions.jsonl").read_bytes()))
        assert sorted(p.name for p in path.parent.iterdir()) == ["predictions.jsonl", "scores.json"]
    assert written[0] == written[1]
    tree = json.loads(written[0][0])
    assert list(tree) == sorted(tree) and tree["prompt"] == "sha"
    assert len(written[0][1].splitlines()) == 20
    assert scores_json(scores) == scores_json(scores)


def test_forgetting_is_a_difference_of_one_bit():
    same = check_forgetting(lambda texts: 2.5, lambda texts: 2.5, ["a text"])
    assert same.unchanged and (same.before, same.after) == (2.5, 2.5)
    assert not check_forgetting(lambda texts: 2.5, lambda texts: 2.5 + 2**-50, ["a text"]).unchanged


def test_forgetting_needs_text_and_finite_losses():
    with pytest.raises(DataError, match="needs text"):
        check_forgetting(lambda texts: 1.0, lambda texts: 1.0, [])
    with pytest.raises(DataError, match="nan"):
        check_forgetting(lambda texts: 1.0, lambda texts: float("nan"), ["a"])
