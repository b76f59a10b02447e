from itertools import pairwise
from pathlib import Path

import pytest

from foreword import bundled_backbones
from foreword.config import build, load_yaml
from foreword.pretrain import PretrainConfig
from foreword.pretrain.models import build_model

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "pretrain").glob("*.yaml"))
CHAIN = ("-base", "-briefs1", "-briefs2", "")


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


def test_the_four_runs_of_the_shipped_decoder_go_on_from_one_another_with_one_tokenizer():
    folder = RECIPES[0].parent
    chain = [build(PretrainConfig, load_yaml(folder / f"decoder-6m{end}.yaml")) for end in CHAIN]
    for before, after in pairwise(chain):
        assert after.init == after.data.tokenizer == before.run / before.name / "backbone"
    assert chain[-1].name in bundled_backbones()
