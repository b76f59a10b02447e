"""The study's table against hand-worked scores, the command line over it, and the recipes of ensembles."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from members import several
from toy import run_config, save_backbone, save_task

from foreword.cli import compose, main, make_parser
from foreword.compose.ensemble import RULES, Ensemble
from foreword.compose.study import study
from foreword.data.records import Record
from foreword.errors import ConfigError
from foreword.tasks.task import GenerationLimits, Task
from foreword.train.gang import check_gang, load_gang, train_gang
from foreword.train.run_config import resolve

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "ensembles").glob("*.yaml"))
TEXTS = ["abc", "q", "zz top", "hello there", "1 2 3", "x=y"]
LIMITS = GenerationLimits(max_new_tokens=6)


def planted(backbone, prompts, right_on_dev, right_on_test):
    """Return a task whose targets are what some member says: `right[i]` names the member that is right on text i."""
    outputs = Ensemble(backbone, prompts).outputs(TEXTS, LIMITS)
    assert all(len(set(row)) == len(row) for row in outputs)  # members differ, so the scores are known

    def load(split):
        right = {"dev": right_on_dev, "test": right_on_test}[split]
        targets = [outputs[i][who] if who is not None else "nobody says this" for i, who in enumerate(right)]
        return [Record(text, (target,), str(i)) for i, (text, target) in enumerate(zip(TEXTS, targets, strict=True))]

    return Task("planted", load, ("exact_match",), LIMITS, splits=("dev", "test"))


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_the_table_is_what_hands_work_out(name, backbone_of):
    backbone = backbone_of(name)
    prompts = several(backbone, 3)
    task = planted(backbone, prompts, [0, 1, 1, 2, None, None], [0, 0, 0, 1, 2, None])
    found = study(prompts, task, backbone=backbone, rules=("majority",), resamples=200)
    assert [round(member.dev * 6) for member in found.members] == [1, 2, 1]
    assert [round(member.test.value * 6) for member in found.members] == [3, 1, 1]
    assert found.average.value == pytest.approx(5 / 18)
    assert found.spread.mean == pytest.approx(5 / 18)
    assert found.best_on_dev.name == found.members[1].name and found.best_on_test.name == found.members[0].name
    # Three different votes each: the tie goes to member 1, the best on dev.
    assert found.ensembles[0].test.value == pytest.approx(1 / 6)
    assert found.ensembles[0].over_average.value == pytest.approx(1 / 6 - 5 / 18)
    assert found.ensembles[0].over_best_on_dev.value == pytest.approx(0.0)
    assert found.average.low < found.average.value < found.average.high
    assert [row["ensembles"]["majority"] for row in found.rows] == [row["members"][1] for row in found.rows]
    text = "\n".join(found.lines())
    assert "best on test (oracle)" in text and "0.5000" in text and "EM" in text


def test_a_majority_of_two_beats_the_rest(backbone_of):
    backbone = backbone_of("gpt2")
    one, two = several(backbone, 2)
    task = planted(backbone, [one, two], [0, 0, 0, 1, None, None], [1, 1, 1, 1, 0, None])
    found = study([one, two, two], task, backbone=backbone, resamples=50)
    assert found.best_on_dev.name == found.members[0].name  # and yet two votes beat the better one
    assert found.ensembles[0].rule == "majority" and found.ensembles[0].test.value == pytest.approx(4 / 6)
    assert {one.rule for one in found.ensembles} == {"majority", "mean", "borda"}


def test_members_write_once_for_all_votes(backbone_of, monkeypatch):
    backbone = backbone_of("gpt2")
    prompts = several(backbone, 3)
    task = planted(backbone, prompts, [0, 1, 1, 2, None, None], [0, 0, 0, 1, 2, None])
    texts, passes = [record.source for record in task.load("test")], []
    by_hand = {rule: Ensemble(backbone, prompts, [1, 2, 1]).answer(texts, LIMITS, rule) for rule in ("borda", "runoff")}
    write = Ensemble.outputs
    monkeypatch.setattr(Ensemble, "outputs", lambda *given: passes.append(given) or write(*given))
    found = study(prompts, task, backbone=backbone, rules=("majority", "borda", "runoff"), resamples=20)
    assert len(passes) == 2  # dev and test
    assert {rule: [row["ensembles"][rule] for row in found.rows] for rule in by_hand} == by_hand
    with pytest.raises(ConfigError, match="it does not vote"):
        Ensemble(backbone, prompts).vote(texts, [["a"] * 3] * 6, "mean")


def test_labels_may_be_chosen(backbone_of):
    backbone, labels = backbone_of("llama"), ("good", "bad")
    prompts = several(backbone, 3)
    chosen = Ensemble(backbone, prompts).classify(TEXTS, labels, "mean")
    task = Task(
        "toy", lambda _: [Record(t, (c,)) for t, c in zip(TEXTS, chosen, strict=True)], ("accuracy",), LIMITS,
        splits=("dev", "test"), labels=labels,
    )
    found = study(prompts, task, backbone=backbone, rules=("mean",), choose=True, resamples=20)
    assert found.ensembles[0].test.value == 1.0 and found.score == "accuracy"
    assert all(set(row["members"]) <= set(labels) for row in found.rows)


def test_what_cannot_be_studied_is_refused(backbone_of):
    backbone = backbone_of("gpt2")
    prompts = several(backbone, 2)
    task = planted(backbone, prompts, [0] * 6, [0] * 6)
    for changes, says in (
        ({"split": "dev"}, "both 'dev'"),
        ({"choose": True}, "no labels"),
        ({"rules": ("bord",)}, "did you mean 'borda'"),
        ({"resamples": 0}, "no interval"),
    ):
        with pytest.raises(ConfigError, match=says):
            study(prompts, task, backbone=backbone, **changes)
    with pytest.raises(ConfigError, match="no member"):
        study([], task, backbone=backbone)
    with pytest.raises(ConfigError, match="task is not given"):
        study(prompts, backbone=backbone)


@pytest.fixture(scope="module")
def gang(tmp_path_factory):
    """Three runs of one gang on a toy task."""
    root = tmp_path_factory.mktemp("gang")
    backbone, task = save_backbone(root / "backbone"), save_task(root / "task")
    described = json.loads(task.read_text()) | {"metrics": ["exact_match"], "test": "dev.jsonl"}
    task.write_text(json.dumps(described))
    prompt = {"length": 3}
    configs = [
        run_config(backbone, task, root / f"r{seed}", seed=seed, prompt=prompt, steps=4, dev={"every": 0})
        for seed in (1, 2, 3)
    ]
    train_gang(configs, progress=False)
    return root


def run(capsys, *words):
    capsys.readouterr()
    code = main([str(word) for word in words])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_the_command_line_scores_a_gang(gang, capsys, tmp_path):
    runs = [gang / f"r{seed}" for seed in (1, 2, 3)]
    options = ("--limit", 5, "--dev-limit", 4, "--resamples", 30, "--out", tmp_path)
    code, out, err = run(capsys, "ensemble", *runs, *options)
    assert code == 0, err
    assert "average" in out and "ensemble, borda" in out and "5 records" in out
    facts = json.loads((tmp_path / "ensemble.json").read_text())
    assert [member["name"] for member in facts["members"]] == ["r1", "r2", "r3"] and facts["n"] == 5
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 5


def test_the_command_line_answers_texts(gang, capsys):
    runs = [gang / f"r{seed}" for seed in (1, 2, 3)]
    options = ("--text", "ab", "--text", "cd", "--max-new-tokens", 3, "--rule", "mean")
    code, out, err = run(capsys, "ensemble", *runs, *options)
    assert code == 0 and len(out.splitlines()) == 2, err
    code, _, err = run(capsys, "ensemble", "--text", "ab")
    assert code == 2 and "no member" in err


def test_the_command_line_combines(gang, capsys, tmp_path):
    from foreword.artifact import load_prompt

    runs = [gang / f"r{seed}" for seed in (1, 2)]
    parts = [load_prompt(folder / "artifact").table("decoder") for folder in runs]
    assert run(capsys, "average", *runs, "--weight", 1, "--weight", 3, "--out", tmp_path / "mean")[0] == 0
    mean = load_prompt(tmp_path / "mean").table("decoder")
    assert torch.allclose(mean, 0.25 * parts[0] + 0.75 * parts[1], atol=1e-6)
    assert run(capsys, "concatenate", *runs, "--out", tmp_path / "both")[0] == 0
    both = load_prompt(tmp_path / "both")
    assert both.length == 6 and torch.equal(both.table("decoder")[:3], parts[0])
    code, _, err = run(capsys, "generate", "ab", "--backbone", gang / "backbone", "--prompt", tmp_path / "both")
    assert code == 0, err
    assert run(capsys, "average", "--out", tmp_path / "none")[0] == 2


def test_the_parser_knows_the_rules_without_importing_pytorch():
    assert compose.ENSEMBLE_RULES == RULES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_an_ensemble_is_a_gang_and_says_how_it_is_run(path):
    configs = [resolve(config) for config in load_gang(path)]
    check_gang(configs)
    assert len(configs) >= 3 and len({config.seed for config in configs}) == len(configs)
    text = path.read_text(encoding="utf-8")
    assert "Expected:" in text and "Time:" in text
    lines = re.findall(r"foreword (?:train|ensemble|inspect|average|evaluate) .*", text)
    assert lines[0] == f"foreword train --gang recipes/ensembles/{path.name}"
    runs = {config.run_dir for config in configs}
    for line in lines[1:]:
        found = make_parser().parse_args(shlex.split(line)[1:])
        named = getattr(found, "sources", None) or getattr(found, "prompts", None) or [found.source]
        assert set(named) <= runs


def test_there_are_recipes_of_ensembles():
    assert {"sst2_prompts", "e2e_prefixes", "venues_prefixes"} <= {path.stem for path in RECIPES}
