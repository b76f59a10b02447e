"""A run's or a score's address changes with everything that decides its outcome, and with nothing else."""

import dataclasses
import json
import shutil

import pytest
from gridkit import make_grid, save_labels

from foreword.experiments.grid.address import Contents, relabelling
from foreword.experiments.grid.spec import Target, points

ONE = {"only": {"prefix": {"prompt.kind": "prefix"}}}


def change(path, **fields):
    """Change fields of a task file in place."""
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def address(grid) -> str:
    return Contents().run(points(grid)[0].config)


@pytest.mark.parametrize("fields", [{"max_source": 5}, {"max_target": 4}])
def test_the_tasks_own_truncation_is_in_a_runs_address(ground, tmp_path, fields):
    task = save_labels(tmp_path)
    grid = make_grid(ground, axes=ONE, base={"task": str(task)})
    set_by_the_run = make_grid(ground, axes=ONE, base={"task": str(task), "data": fields})
    before, same = address(grid), address(set_by_the_run)
    change(task, **fields)
    assert address(grid) != before
    assert address(grid) == address(set_by_the_run) == same  # who says it does not matter


def test_the_content_of_the_prompt_that_a_run_starts_from_is_in_its_address(ground, tmp_path):
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "foreword.json").write_text("{}", encoding="utf-8")
    init = {"name": "artifact", "artifact": str(tmp_path / "artifact")}
    grid = make_grid(ground, axes=ONE, base={"prompt": {"length": 3, "init": init}})
    before = address(grid)
    shutil.copytree(tmp_path / "artifact", tmp_path / "copy")
    copied = {"name": "artifact", "artifact": str(tmp_path / "copy")}
    assert address(make_grid(ground, axes=ONE, base={"prompt": {"length": 3, "init": copied}})) == before
    (tmp_path / "artifact" / "foreword.json").write_text('{"length": 3}', encoding="utf-8")
    assert address(grid) != before


def test_a_start_that_a_method_does_not_read_is_not_in_its_address(ground, tmp_path):
    (tmp_path / "artifact").mkdir()
    axes = {"method": {"fine_tune": {"method": "fine_tune"}}}
    init = {"name": "artifact", "artifact": str(tmp_path / "artifact")}
    grid = make_grid(ground, axes=axes, base={"prompt": {"length": 3, "init": init}})
    assert address(grid) == address(make_grid(ground, axes=axes))


def test_decoding_and_labels_are_in_the_address_where_a_score_decides(ground, tmp_path):
    task = save_labels(tmp_path)
    base = {"task": str(task), "dev": {"every": 3, "metric": "accuracy"}}
    by_score, by_loss = make_grid(ground, axes=ONE, base=base), make_grid(ground, axes=ONE, base={"task": str(task)})
    before = address(by_score), address(by_loss)
    change(task, generation={"max_new_tokens": 2})
    assert address(by_score) != before[0] and address(by_loss) == before[1]
    change(task, generation={"max_new_tokens": 3}, metrics=["accuracy"])
    assert address(by_score) != before[0]


@pytest.mark.parametrize("method", ["written", "autoprompt"])
def test_labels_are_in_the_address_of_methods_that_learn_from_them(ground, tmp_path, method):
    """Examples are drawn a label in turn, and label words are searched a label: other labels, another run."""
    task = save_labels(tmp_path)
    base = {"task": str(task), "method": method, "dev": {"every": 0}}
    base |= {"prompt": {}, "batch": {}} if method == "autoprompt" else {"written": {"shots": 4}}
    grid = make_grid(ground, axes={"only": {"it": {}}}, base=base)
    before = address(grid)
    change(task, metrics=["accuracy", "bleu"])
    assert address(grid) == before
    change(task, label_words={"up": "up", "down": "down", "flat": "flat"})
    assert address(grid) != before
    change(task, label_words={})
    assert address(grid) != before


@pytest.mark.parametrize(
    ("method", "pinned"),
    [("prompt", "fc0a225326f5157b80ad"), ("fine_tune", "a926aa12e5fe7a17e0c0"), ("lora", "cbc7b1370f0d9c4b360d")],
)
def test_addresses_of_other_methods_stay_as_they_are(ground, tmp_path, method, pinned):
    """A store of finished runs is found again: these addresses were taken before labels were in any."""
    task = save_labels(tmp_path)
    base = {"task": str(task), "backbone": {"source": "some-organisation/small", "device": "cpu"}}
    grid = make_grid(ground, axes={"only": {"it": {"method": method}}}, base=base)
    assert address(grid) == pinned
    change(task, label_words={"up": "up", "down": "down", "flat": "flat"})
    assert address(grid) == pinned


@pytest.mark.parametrize(
    ("base", "differs"),
    [
        ({"backbone.dtype": "bfloat16"}, True),
        ({"backbone.quantization": "8bit"}, True),
        ({"backbone.revision": "main"}, True),
        ({"method": "fine_tune", "data.words": "sort"}, True),
        ({"data.max_source": 4}, True),
        ({"data.format": "separator"}, True),
        ({"backbone.device": None}, False),
        ({"steps": 9, "optim.lr": 0.5, "data.limit": 4}, False),
        ({"method": "written", "data.words": "sort"}, False),  # the written prompt is its words
    ],
)
def test_an_untouched_backbones_address_holds_what_its_outputs_depend_on(ground, base, differs):
    plain = points(make_grid(ground, axes=ONE))[0].config
    config = points(make_grid(ground, axes={"only": {"it": base}}))[0].config
    contents = Contents()
    assert (contents.untouched(config) != contents.untouched(plain)) == differs


def test_backbones_of_one_family_on_the_hub_have_floors_of_their_own(ground):
    """Their names begin alike, and nothing of them is at hand to be hashed."""
    config, contents = points(make_grid(ground, axes=ONE))[0].config, Contents()
    found = {
        contents.untouched(dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, source=source)))
        for source in ("some-organisation/small", "some-organisation/large")
    }
    assert len(found) == 2


def test_a_targets_truncation_is_in_a_scores_address(ground, tmp_path):
    task = save_labels(tmp_path, first=100)
    grid = make_grid(ground, axes=ONE, scoring={"targets": [{"task": str(task)}]})
    cut = make_grid(ground, axes=ONE, scoring={"targets": [{"task": str(task)}]}, base={"data": {"max_source": 9}})

    def scored(grid) -> str:
        return Contents().score("run", points(grid)[0].config, grid.scoring, grid.scoring.targets[0])

    before = scored(grid), scored(cut)
    change(task, max_source=5)
    assert scored(grid) != before[0]
    assert scored(cut) == before[1]  # the run's own is in the run's address


def test_labels_are_written_otherwise_only_for_runs_of_another_task(tmp_path, monkeypatch):
    task = save_labels(tmp_path)
    monkeypatch.chdir(tmp_path)
    target = Target(str(task), "test", {"up": "on"})
    assert relabelling("mrpc", target) == {"up": "on"}
    for own in (str(task), "order.yaml", "./order.yaml", f"{task}@size=8,draw=1"):
        assert relabelling(own, target) == {}
    assert relabelling("mrpc@size=8", Target("mrpc", "test", {"equivalent": "duplicate"})) == {}
