"""docs/MEASURE.md: its task table is the code's, its YAML is valid, and every task's form makes the round trip."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from backbones import make

from foreword.config import build
from foreword.data.examples import get_format, tokenise
from foreword.data.records import Record
from foreword.evaluate.metrics import BY_GROUP
from foreword.evaluate.runner import evaluate_outputs
from foreword.experiments.grid.check import check_grid
from foreword.experiments.grid.spec import Grid, points
from foreword.tasks import TASKS, OwnTask, own_task

PAGE = (Path(__file__).parents[2] / "docs" / "MEASURE.md").read_text(encoding="utf-8")
JAVA = ("meteor", "rouge_l", "cider")  # the PTB tokenizer's metrics need Java and seconds; tests/evaluate has them


def test_the_table_of_tasks_is_the_codes():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| `(.*?)` \| (.*?) \| beam (\d+), (\d+) tokens \|", PAGE, flags=re.M)
    assert [row[0] for row in rows] == list(TASKS)
    for name, splits, form, metrics, beams, tokens in rows:
        task = TASKS[name]
        assert tuple(splits.split(", ")) == task.splits and tuple(metrics.split(", ")) == task.metrics
        assert form.replace("\\|", "|") == task.template.strip()
        assert (int(beams), int(tokens)) == (task.generation.num_beams, task.generation.max_new_tokens)


def test_the_yaml_on_the_page_is_valid():
    own, grid = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S))
    assert own_task(build(OwnTask, own)).splits == ("train", "dev", "test")
    built = build(Grid, grid)
    check_grid(built)
    assert len(points(built)) == 18


@pytest.mark.parametrize("name", list(TASKS))
def test_every_tasks_form_makes_the_round_trip(name):
    """Source and target through the tokenizer and back; the target's own text then has the best score."""
    task, backbone = TASKS[name], make("gpt2")
    target = task.labels[-1] if task.labels else "red mill serves old tea by the river"
    source = re.split(" (?:->|→) ", task.template)[0].strip()
    key = {"score": {"group": "1", "label": True}} if set(task.metrics) & set(BY_GROUP) else {}
    record = Record(source, (target,), "1", key)
    (row,) = tokenise([record], backbone.tokenizer, get_format(None)).examples
    back = backbone.tokenizer.decode(row.target_ids, skip_special_tokens=True).strip()
    assert back == target and source in backbone.tokenizer.decode(row.source_ids)
    metrics = tuple(m for m in task.metrics if not any(m.endswith(j) for j in JAVA))
    scores = evaluate_outputs(dataclasses.replace(task, metrics=metrics), [record], [back], resamples=0)
    for score, value in scores.metrics.items():
        if score not in ("NIST", "macro_F1"):  # NIST has no fixed best; classes that do not occur count 0
            assert value == pytest.approx(0.0 if score == "TER" else 1.0), score
