"""The smallest shipped backbone's loss curve again, on this machine's CPU, from its recipe."""

import json
import os
from pathlib import Path

import pytest

from foreword import bundled_backbones
from foreword.config import build, load_yaml, override
from foreword.errors import DataError
from foreword.pretrain import PretrainConfig
from foreword.pretrain.corpus import corpus_path
from foreword.pretrain.job import Run

NAME, STEPS = "foreword-decoder-1.5m", 30
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")  # the compiler warns of itself
def test_the_smallest_recipe_gives_the_shipped_curve_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    try:
        corpus_path("wikipedia_en")
    except DataError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(ROOT)  # the recipe names its tokenizer from there
    # FOREWORD_PACKED names data packed before; packing takes some six minutes, the steps three.
    packed = os.environ.get("FOREWORD_PACKED", str(tmp_path / "data"))
    settings = ["device=cpu", "precision=float32", "micro_rows=16", "accumulation=4"]
    recipe = load_yaml(ROOT / "recipes" / "pretrain" / f"{NAME.removeprefix('foreword-')}.yaml")
    job = Run(build(PretrainConfig, override(recipe, [*settings, f"data.folder={packed}", f"run={tmp_path}"])))
    facts = json.loads((bundled_backbones()[NAME] / "pretraining.json").read_text())
    manifest = json.loads((job.config.data.folder / "manifest.json").read_text())
    assert manifest["streams"] == facts["manifest"]["streams"]  # the same tokens, by their digests

    lines = (bundled_backbones()[NAME] / "loss_curve.jsonl").read_text().splitlines()
    shipped = {line["step"]: line["loss"] for line in map(json.loads, lines) if "loss" in line}
    compared = 0
    for step in range(1, STEPS + 1):
        loss = float(job._step()["loss"])
        job.progress.step += 1
        if step in shipped:
            compared += 1
            print(f"step {step}: {loss:.5f}, shipped {shipped[step]:.5f}, ratio - 1 {loss / shipped[step] - 1:+.1e}")
            assert loss == pytest.approx(shipped[step], rel=5e-3), step  # the shipped run multiplied in bfloat16
    assert compared == 4
