"""The demo's page from made-up outcomes: every block renders, and shows the figures it was given."""

import dataclasses
import json

import pytest

from foreword.doctor import Check, Findings
from foreword.evaluate.job import Evaluation
from foreword.evaluate.runner import Forgetting, Scores, prediction_rows
from foreword.evaluate.stats import Interval
from foreword.experiments.demo_page import HEADLINE_METRIC, Learned, MixedRow, demo_page, read_curves
from foreword.experiments.report import render
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.tasks import get_task
from foreword.train.run import TrainResult
from foreword.train.run_config import BackboneConfig, RunConfig, resolve


def scores(task: str, value: float) -> Scores:
    metric = HEADLINE_METRIC[task]
    return Scores(task, "test", 2, {metric: value}, {metric: Interval(value, value - 0.1, value + 0.1)})


@pytest.fixture
def learned(backbone_of, tmp_path):
    backbone, made = backbone_of("llama"), []
    for task, after in (("venues", 0.625), ("sentiment", 0.875), ("headlines", 0.375)):
        run_dir = tmp_path / task
        run_dir.mkdir()
        rows = [{"step": step, "loss": 3.0 / step} for step in (1, 2, 3)] + [{"step": 3, "dev_loss": 1.5}]
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = BackboneConfig(source=backbone.source)
        config = resolve(RunConfig(task=task, run_dir=str(run_dir), prompt=PromptSpec(length=3), backbone=source))
        prompt = make_prompt(config.prompt, backbone)
        result = TrainResult(run_dir, run_dir / "artifact", 3, 1.0, 1.5, 3, prompt, 2.0)
        records = get_task(task).load("test", 2)
        found = {"untouched": scores(task, 0.125), "prefix 3": scores(task, after)}
        outputs = {name: prediction_rows(records, [f"{name} says <b>", "x"]) for name in found}
        made.append(Learned(config, result, Evaluation(str(run_dir), found, outputs, Forgetting(2.0, 2.0))))
    return made


def test_the_page_shows_what_it_was_given(learned, backbone_of):
    findings = Findings((Check("gradient", True, "reaches all"), Check("effect", False, "changes nothing")))
    mixed = [MixedRow("venues", "a", "b", True), MixedRow("none", "c", "d", False)]
    html = render(demo_page(learned, backbone_of("llama"), findings, mixed, 61.0))
    for sign in ("0.12 → 0.62", "0.625", "0.525–0.725", "reaches all", "changes nothing", "1 of them came out"):
        assert sign in html, sign
    assert "prefix 3 says &lt;b&gt;" in html and "says <b>" not in html
    assert "unchanged to the last bit" in html


def test_an_encoder_decoders_run_has_a_section_of_its_own(learned, backbone_of):
    findings, title = Findings((Check("a", True, "b"),)), "The same on an encoder-decoder"
    html = render(demo_page(learned, backbone_of("llama"), findings, [], 1.0, [learned[1]]))
    alone = render(demo_page(learned, backbone_of("llama"), findings, [], 1.0))
    assert title not in alone and title in html
    assert html.split(title)[-1].count("0.875") == 1


def test_a_changed_loss_on_unrelated_text_is_told(learned, backbone_of):
    forgot = dataclasses.replace(learned[0].scored, forgetting=Forgetting(2.0, 2.5))
    changed = [Learned(learned[0].config, learned[0].result, forgot), *learned[1:]]
    html = render(demo_page(changed, backbone_of("llama"), Findings((Check("a", True, "b"),)), [], 1.0))
    assert "unchanged to the last bit" not in html


def test_curves_are_read_from_the_metrics_file(learned):
    train, dev = read_curves(learned[0].result.run_dir)
    assert train == [(1, 3.0), (2, 1.5), (3, 1.0)] and dev == [(3, 1.5)]
