"""The best step is one whose dev value is a number, whatever came before it."""

import math

import pytest
import torch
from toy import run_config

from foreword.artifact import load_prompt
from foreword.train.dev import Best
from foreword.train.job import train
from foreword.train.run_config import DevConfig


@pytest.mark.parametrize("metric", ["loss", "BLEU"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_worse_than_any(metric, bad):
    best, config = Best(), DevConfig(every=1, metric=metric)
    kept = [best.judge(step, {metric: value}, config) for step, value in enumerate((bad, bad, 0.5, bad), start=1)]
    assert kept == [True, False, True, False]  # the first is kept until there is a better one
    assert (best.step, best.value, best.since) == (3, 0.5, 1)


def test_a_run_whose_first_dev_value_is_nan_keeps_a_later_step(saved_llama, toy_task, tmp_path):
    seen = {}

    def evaluator(backbone, prompt, step):
        seen[step] = prompt.table("decoder").clone()
        return {"quality": {4: math.nan, 8: 0.25, 12: math.nan}[step]}

    config = run_config(saved_llama, toy_task, tmp_path / "run", dev={"every": 4, "metric": "quality"})
    result = train(config, evaluator=evaluator, progress=False)
    assert (result.best_step, result.best_dev, sorted(seen)) == (8, 0.25, [4, 8, 12])
    assert torch.equal(load_prompt(result.artifact_dir).table("decoder"), seen[8])


def test_a_run_without_any_finite_dev_value_still_ends_with_a_prompt(saved_llama, toy_task, tmp_path):
    config = run_config(saved_llama, toy_task, tmp_path / "run", dev={"every": 4, "metric": "quality"})
    result = train(config, evaluator=lambda backbone, prompt, step: {"quality": math.nan}, progress=False)
    assert result.best_step == 4 and math.isnan(result.best_dev) and result.artifact_dir.is_dir()
