"""Law 6: folding changes nothing; save and load change no bit; resume equals uninterrupted; same seed, same file."""

import json

import pytest
import torch
import yaml
from lawbook import FAMILIES, copy_of, difference, drawn, random_rows, row_logits, specs

from foreword.artifact import load_prompt, save_prompt
from foreword.config import build
from foreword.train.job import resume, train
from foreword.train.run_config import RunConfig


@pytest.mark.parametrize("name", FAMILIES)
def test_folding_the_mlp_changes_no_logit(name, backbone_of, measure):
    backbone = backbone_of(name)
    rows = random_rows([8, 15], targets=(5,))
    for spec in (spec for spec in specs(name).values() if spec.reparam == "mlp"):
        prompt = drawn(backbone, spec)
        folded = prompt.fold()
        assert folded.spec.reparam == "none" and folded.num_stored == prompt.num_stored == folded.num_parameters
        with torch.no_grad():
            measure(
                "6 folded", name,
                difference(row_logits(backbone, rows, [folded] * 2), row_logits(backbone, rows, [prompt] * 2)), 1e-6,
            )


@pytest.mark.parametrize("name", FAMILIES)
def test_saving_and_loading_changes_no_bit(name, backbone_of, tmp_path):
    backbone = backbone_of(name)
    rows = random_rows([8, 15], targets=(5,))
    for kind, spec in specs(name).items():
        prompt = drawn(backbone, spec)
        saved = save_prompt(prompt, tmp_path / kind, backbone)
        unfolded = load_prompt(saved, backbone, unfolded=True)
        assert unfolded.spec == spec, kind
        kept = unfolded.state_dict()
        assert set(kept) == set(prompt.state_dict())
        assert all(torch.equal(kept[key], tensor) for key, tensor in prompt.state_dict().items()), kind
        with torch.no_grad():
            ours, theirs = (row_logits(backbone, rows, [p] * 2) for p in (load_prompt(saved, backbone), prompt))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), kind


@pytest.fixture
def job(backbone_of, tmp_path):
    """Return a function that gives a config of a run in a directory of its own."""
    backbone = backbone_of("llama")
    backbone.model.save_pretrained(tmp_path / "backbone")
    backbone.tokenizer.save_pretrained(tmp_path / "backbone")
    rows = [{"source": f"q{i}", "target": "ab"[i % 2] * (1 + i % 5)} for i in range(12)]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "own", "source": "{source}", "target": "{target}", "train": "train.jsonl", "dev": "dev.jsonl",
            "metrics": ["accuracy"]}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))

    def config(run, **changes):
        tree = {
            "task": str(tmp_path / "task.yaml"), "run_dir": str(tmp_path / run), "steps": 6, "track": [], "seed": 3,
            "backbone": {"source": str(tmp_path / "backbone"), "device": "cpu"},
            "prompt": {"length": 4, "reparam": "mlp", "reparam_width": 16, "dropout": 0.2},
            "batch": {"rows": 3}, "dev": {"every": 2}, "checkpoint": {"every": 2}, **changes,
        }
        return build(RunConfig, tree)

    return config


def tables(result):
    return {name: tensor.detach().clone() for name, tensor in result.prompt.state_dict().items()}


class Stop(Exception):
    pass


class StopsAt:
    """An evaluator that fails at its n-th call, in the middle of a step, before the checkpoint of that step."""

    def __init__(self, call):
        self.left = call

    def __call__(self, *_):
        self.left -= 1
        if not self.left:
            raise Stop
        return {}


def test_resume_equals_uninterrupted(job):
    """Cut off at every step by a fault in the evaluator, the run ends with the same bits and the same metrics."""
    whole = train(job("whole"), progress=False)
    metrics = (whole.run_dir / "metrics.jsonl").read_bytes()
    for cut in (2, 4):
        evaluator = StopsAt(cut // 2)
        with pytest.raises(Stop):
            train(job(f"cut-{cut}"), evaluator=evaluator, progress=False)
        again = resume(job(f"cut-{cut}").run_dir, progress=False)
        assert all(torch.equal(tables(again)[k], v) for k, v in tables(whole).items())
        assert (again.run_dir / "metrics.jsonl").read_bytes() == metrics


def test_the_same_config_and_seed_write_the_same_metrics_file(job):
    first, second = (train(job(run), progress=False) for run in ("a", "b"))
    other = train(job("c", seed=4), progress=False)
    texts = [(result.run_dir / "metrics.jsonl").read_bytes() for result in (first, second, other)]
    assert texts[0] == texts[1] != texts[2]
    assert len(texts[0].splitlines()) >= 6
    assert all(torch.equal(tables(first)[k], v) for k, v in tables(second).items())


def test_a_deep_copy_is_the_same_prompt(backbone_of):
    """A copied model keeps its injection, and a prompt of the original works on it."""
    backbone = backbone_of("gemma3")
    copied, rows = copy_of(backbone), random_rows([8, 40])
    prompt = drawn(backbone, specs("gemma3")["prefix-mlp"])
    with torch.no_grad():
        ours, theirs = (row_logits(b, rows, [prompt, None]) for b in (copied, backbone))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
