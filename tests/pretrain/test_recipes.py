import json
from dataclasses import replace
from pathlib import Path

import pytest

from foreword import bundled_backbones
from foreword.config import build, load_yaml, to_dict
from foreword.pretrain import PretrainConfig
from foreword.pretrain.job import _shippable
from foreword.pretrain.models import build_model

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "pretrain").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_and_its_header_has_its_command(path: Path):
    config = build(PretrainConfig, load_yaml(path))
    assert path.read_text().startswith(f"# foreword pretrain recipes/pretrain/{path.name}\n")
    assert path.stem.startswith(f"{config.family}-{config.size}")
    assert (config.objective == "causal") == (config.family == "decoder")
    assert abs(sum(config.data.weights(0.4).values()) - 1) < 1e-9
    build_model(config.family, "tiny", 300, config.positions, config.seed)


def test_adaptation_starts_from_the_recipe_beside_it():
    for path in RECIPES:
        config = build(PretrainConfig, load_yaml(path))
        if config.init is not None and config.family == "t5":
            base = build(PretrainConfig, load_yaml(path.with_name(path.stem.split("-lm")[0] + ".yaml")))
            assert config.init == base.run / base.name / "backbone"
            share = int(path.stem.split("-lm")[1])
            assert config.steps == base.steps * share // 100


def test_recipes_that_share_a_folder_share_its_mixture():
    """Or the second to run would be refused; natural text and tokenizer are the same in all."""
    data = [build(PretrainConfig, load_yaml(path)).data for path in RECIPES]
    assert len({json.dumps(to_dict(d)) for d in data}) == len({d.folder for d in data}) == 2
    assert len({json.dumps(to_dict(replace(d, folder=Path("any"), copying={}))) for d in data}) == 1
    assert data[0].tokenizer.name == next(iter(bundled_backbones()))


@pytest.mark.parametrize("name", bundled_backbones())
def test_a_shipped_backbone_says_the_recipe_that_lies_here(name: str):
    folder = bundled_backbones()[name]
    facts = json.loads((folder / "pretraining.json").read_text())
    config = build(PretrainConfig, load_yaml(RECIPES[0].with_name(f"{name.removeprefix('foreword-')}.yaml")))
    assert facts["recipe"] == _shippable(config)
    curve = [json.loads(line) for line in (folder / "loss_curve.jsonl").read_text().splitlines()]
    assert curve[-1]["step"] == facts["steps"] == config.steps and curve[-1]["heldout"] == facts["heldout"]
    assert curve[-1]["tokens"] == facts["tokens"] == config.steps * config.micro_rows * config.context
