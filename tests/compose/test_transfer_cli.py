"""`foreword transfer` end to end on a toy task and two tiny backbones."""

import json

import pytest
import torch
from backbones import make
from toy import drawn_prompt, save_backbone, save_task

from foreword.artifact import load_prompt, save_prompt
from foreword.backbone import load_backbone
from foreword.cli import main


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two backbones of other widths, two prompts of each, a task."""
    root = tmp_path_factory.mktemp("world")
    for name in ("llama", "qwen3"):
        save_backbone(root / name, name)
        backbone = load_backbone(root / name)
        for seed in range(2):
            save_prompt(
                drawn_prompt(backbone, seed, kind="prompt"), root / f"{name}-prompts" / f"p{seed}", backbone,
                recipe={"task": str(root / "task" / "toy.yaml")},
            )
    save_task(root / "task")
    prefix = drawn_prompt(make("llama"), kind="prefix")
    save_prompt(prefix, root / "prefix", load_backbone(root / "llama"))
    return root


def test_rank_lists_the_most_similar_first(world, capsys):
    library = world / "llama-prompts"
    assert main(["transfer", "rank", str(library / "p1"), "--library", str(library), "--measure", "C_concat"]) == 0
    first, second = (line.split() for line in capsys.readouterr().out.splitlines())
    assert first == ["1.000000", "p1"] and second[1] == "p0" and float(second[0]) < 0.9
    assert main(["transfer", "rank", str(library / "p1"), "--library", str(library), "--measure", "ON"]) == 2
    assert "give its backbone" in capsys.readouterr().err
    options = ["--measure", "ON", "--backbone", str(world / "llama")]
    assert main(["transfer", "rank", str(library / "p0"), "--library", str(library), *options]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["1.000000", "p0"]


def test_mix_saves_the_weighted_sum(world, tmp_path, capsys):
    places = [world / "llama-prompts" / name for name in ("p0", "p1")]
    out = tmp_path / "mixed"
    weights = ["--weight", "0.75", "--weight", "0.25"]
    assert main(["transfer", "mix", *map(str, places), *weights, "--out", str(out)]) == 0, capsys.readouterr().err
    a, b = (load_prompt(place).table("embedding").double() for place in places)
    mixed = load_prompt(out, load_backbone(world / "llama"))
    assert torch.equal(mixed.table("embedding"), (0.75 * a + 0.25 * b).float())
    assert mixed.meta["recipe"]["mixture"] == {str(places[0]): 0.75, str(places[1]): 0.25}


def test_mix_takes_the_most_similar_of_a_library(world, tmp_path, capsys):
    library = world / "llama-prompts"
    options = ["--query", str(library / "p0"), "--library", str(library), "--measure", "E_concat", "--top", "1"]
    assert main(["transfer", "mix", *options, "--out", str(tmp_path / "one")]) == 0, capsys.readouterr().err
    assert torch.equal(load_prompt(tmp_path / "one").table("embedding"), load_prompt(library / "p0").table("embedding"))
    assert main(["transfer", "mix", "--out", str(tmp_path / "none")]) == 2
    assert "give either prompts to mix" in capsys.readouterr().err


def test_options_without_effect_are_refused(world, tmp_path, capsys):
    library, out = str(world / "llama-prompts"), ["--out", str(tmp_path / "none")]
    first = f"{library}/p0"
    for command, says in (
        (["transfer", "mix", first, "--library", library, *out], "--library has no effect beside prompts to mix"),
        (["transfer", "mix", "--query", first, "--library", library, "--weight", "1", *out], "--weight has no effect"),
        (["ensemble", first, "--text", "a", *out], "--out has no effect beside --text"),
        (["ensemble", first, "--text", "a", "--choose"], "--choose has no effect beside --text"),
    ):
        assert main(command) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_matrix_scores_every_prompt_on_every_task(world, tmp_path, capsys):
    command = ["transfer", "matrix", str(world / "llama-prompts"), "--backbone", str(world / "llama"), "--limit", "4"]
    assert main([*command, "--out", str(tmp_path / "m.json")]) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert found["sources"] == ["p0", "p1", "untouched"] and found["targets"] == ["p0", "p1"]
    assert f"{found['cells']['p1']['p0']['loss']:.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["prefix", "llama-prompts/p0"])
def test_recycle_makes_a_prompt_for_the_other_model(world, tmp_path, capsys, which):
    out = tmp_path / "made"
    assert main(["transfer", "recycle", str(world / which), "--target", str(world / "qwen3"), "--out", str(out)]) == 0
    assert "relative error of the map" in capsys.readouterr().out
    load_prompt(out).check_backbone(load_backbone(world / "qwen3"))


@pytest.mark.parametrize("how", ["distance", "task", "both"])
def test_project_trains_and_applies_a_projector(world, tmp_path, capsys, how):
    command = ["transfer", "project", str(world / "llama-prompts" / "p0"), "--out", str(tmp_path / "made")]
    command += ["--source", str(world / "llama"), "--target", str(world / "qwen3"), "--steps", "5", "--limit", "8"]
    command += ["--from", str(world / "llama-prompts" / "p1")]
    command += ["--to", str(world / "qwen3-prompts" / "p1")] if how != "task" else []
    command += ["--task", str(world / "task" / "toy.yaml")] if how != "distance" else []
    assert main(command) == 0, capsys.readouterr().err
    assert "projector token: loss" in capsys.readouterr().out
    load_prompt(tmp_path / "made").check_backbone(load_backbone(world / "qwen3"))
    assert main([*command, "--task", "a", "--task", "b"]) == 2
    assert "give equally many" in capsys.readouterr().err


def test_a_mistyped_action_is_told_its_nearest(capsys):
    assert main(["transfer", "recycel"]) == 2
    assert "did you mean 'recycle'" in capsys.readouterr().err
