"""The ensemble benchmark runs, in small, and an ensemble is cheaper than its members apart."""

import json

import pytest
from test_benchmarks import run


@pytest.mark.slow
def test_an_ensemble_costs_less_than_its_members_apart(tmp_path):
    options = ["--members", 3, "--texts", 1, "--repeats", 2, "--new-tokens", 4]
    result, printed = run("ensemble_cost.py", *options, "--record", tmp_path / "record")
    assert [line["job"] for line in result["lines"]] == ["label scoring", "generation"]
    assert all(line["cpu_ratio"] < 0.9 for line in result["lines"])
    assert 0.9 < result["memory_ratio"] < 1.3
    assert result["memory"]["ensemble"]["prompts"] == 3 * result["memory"]["one"]["prompts"]
    assert json.loads((tmp_path / "record.json").read_text()) == result
    assert (tmp_path / "record.txt").read_text() in printed
