"""One inspection from the API, the command line, and its page."""

import json
import xml.etree.ElementTree as ET

import pytest
import torch
from toy import run_config, save_backbone, save_task

from foreword.cli import main
from foreword.errors import DataError
from foreword.experiments.heat_map import HeatMap, heat_map, write_heat_map
from foreword.experiments.inspect_page import inspect_page
from foreword.experiments.report import Report, render
from foreword.inspect.job import inspect_prompt
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import InitSpec, PromptSpec
from foreword.train.job import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run on a toy task."""
    root = tmp_path_factory.mktemp("run")
    backbone, task = save_backbone(root / "backbone"), save_task(root / "task")
    init = {"name": "labels", "labels": ["ab", "c"]}
    prompt = {"kind": "prompt", "length": 4, "reparam": "none", "init": init}
    train(run_config(backbone, task, root / "run", prompt=prompt, steps=4, dev={"every": 0}), progress=False)
    return root / "run"


def test_everything_is_told_of_a_run(run):
    found = inspect_prompt(run, limit=3)
    assert found.texts == "3 records of toy, dev" and found.count == 3 and not found.missing
    assert len(found.nearest.tokens) == len(found.importance.without) == 4
    assert [one.word for one in found.persistence] == ["ab", "c"]
    assert found.attention.weights["decoder", 2].shape == (4, 4)
    facts = json.loads(json.dumps(found.to_dict()))
    assert facts["attention"]["weights"].keys() == {"decoder.0", "decoder.1", "decoder.2"}
    assert facts["norms"]["keys"].keys() == facts["attention"]["weights"].keys()
    lines = "\n".join(found.lines())
    assert "initial word 'ab' at 0" in lines and "without it" in lines


def test_what_makes_no_sense_is_left_out_and_said(backbone_of):
    prompt = make_prompt(PromptSpec(length=1, layers=(1,)), backbone_of("gpt2"))
    with torch.no_grad():
        prompt.tables["decoder"].weight.normal_(generator=torch.Generator().manual_seed(0))
    found = inspect_prompt(prompt, backbone=backbone_of("gpt2"), limit=2)
    assert found.texts == "2 bundled texts, cut in halves"
    assert found.nearest is None and found.importance is None
    assert set(found.missing) == {"nearest tokens", "leaving one out"}
    page = render(inspect_page(found))
    assert "not at layer 0" in page and "nothing left without it" in page


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_an_encoder_decoder_has_a_map_for_each_stack(kind, backbone_of):
    prompt = make_prompt(PromptSpec(kind=kind, length=3), backbone_of("t5"))
    with torch.no_grad():
        for table in prompt.tables.values():
            table.weight.normal_(generator=torch.Generator().manual_seed(0))
    found = inspect_prompt(prompt, backbone=backbone_of("t5"), limit=2)
    stacks = {"prefix": {"encoder", "decoder", "cross"}, "prompt": {"encoder", "cross"}}[kind]
    assert set(found.attention.stacks) == stacks
    page = render(inspect_page(found))
    assert all(f"{stack}: every head by itself." in page for stack in stacks)


def test_an_infix_is_inspected_too(backbone_of):
    prompt = make_prompt(PromptSpec(kind="infix", length=2, init=InitSpec("vocabulary")), backbone_of("llama"))
    with torch.no_grad():
        for table in prompt.tables.values():
            table.weight.normal_(generator=torch.Generator().manual_seed(0))
    found = inspect_prompt(prompt, backbone=backbone_of("llama"), limit=2)
    assert found.attention.weights and not found.missing and not found.norms.keys
    assert "Inside" in render(inspect_page(found))


def test_the_command_line_writes_page_figures_and_map(run, tmp_path, capsys):
    html, figures, svg = (tmp_path / name for name in ("p.html", "p.json", "p.svg"))
    files = ["--html", html, "--json", figures, "--svg", svg]
    assert main([str(word) for word in ["inspect", run, "--limit", 2, *files, "--word", "a", "--word", "b"]]) == 0
    assert "nearest tokens by input embeddings" in capsys.readouterr().out
    page = html.read_text()
    assert "What each virtual token does" in page and "http" not in page.replace("http-equiv", "")
    assert json.loads(figures.read_text())["count"] == 2
    root = ET.parse(svg).getroot()
    cells = root.findall("{http://www.w3.org/2000/svg}rect[@class='heat']")
    assert len(cells) == 3 * 4 + 5  # layers by virtual tokens, and the scale
    assert "var(--c0)" not in svg.read_text() and "#2b5f92" in svg.read_text()
    assert main(["inspect", str(run), "--task", "venuse"]) == 2
    assert "venues" in capsys.readouterr().err


def test_a_heat_map_shows_its_numbers():
    drawn = HeatMap([[0.0, 0.5], [1.0, float("nan")]], ["a", "b"], ["x", "<y>"], "column", "row", "share")
    root = ET.fromstring(str(heat_map(drawn, 340)))
    cells = [rect for rect in root.iter("rect") if rect.find("title") is not None]
    assert [float(rect.get("fill-opacity")) for rect in cells] == [0.04, 0.52, 1.0]  # the NaN is blank
    assert cells[1].find("title").text == "row a, column <y>: 0.5"
    assert all(float(rect.get("x")) + float(rect.get("width")) <= 340 for rect in root.iter("rect"))
    assert "heat" in render(Report("t", "s", [drawn]))


def test_a_heat_map_of_wrong_shape_is_refused(tmp_path):
    with pytest.raises(DataError, match="1 by 2 labels"):
        HeatMap([[0.1]], ["a"], ["x", "y"], "column", "row", "share")
    with pytest.raises(DataError, match="no cell"):
        HeatMap([], [], [], "column", "row", "share")
    with pytest.raises(DataError, match="below zero"):
        HeatMap([[-0.1]], ["a"], ["x"], "column", "row", "share")
    rows, columns = list(map(str, range(60))), list(map(str, range(200)))
    many = HeatMap([[0.1] * 200] * 60, rows, columns, "column", "row", "share")
    root = ET.parse(write_heat_map(tmp_path / "m.svg", many)).getroot()
    assert 10 < sum(part.tag.endswith("text") for part in root.iter()) < 120  # thinned where they would overlap
