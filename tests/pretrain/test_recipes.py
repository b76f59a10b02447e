import json
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


def test_all_recipes_have_one_mixture_and_the_bundled_tokenizer():
    configs = [build(PretrainConfig, load_yaml(path)) for path in RECIPES]
    assert len({json.dumps(to_dict(config.data)) for config in configs}) == 1
    assert configs[0].data.tokenizer.name == next(iter(bundled_backbones()))


@pytest.mark.parametrize("name", bundled_backbones())
def test_a_shipped_backbone_says_the_recipe_that_lies_here(name: str):
    folder = bundled_backbones()[name]
    facts = json.loads((folder / "pretraining.json").read_text())
    config = build(PretrainConfig, load_yaml(RECIPES[0].with_name(f"{name.removeprefix('foreword-')}.yaml")))
    assert facts["recipe"] == _shippable(config)
    curve = [json.loads(line) for line in (folder / "loss_curve.jsonl").read_text().splitlines()]
    assert curve[-1]["step"] == facts["steps"] == config.steps and curve[-1]["heldout"] == facts["heldout"]
    assert curve[-1]["tokens"] == facts["tokens"] == config.steps * config.micro_rows * config.context
