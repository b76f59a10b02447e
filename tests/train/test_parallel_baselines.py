"""Two gloo processes train a baseline to the one-process result: every weight, the top, adapters, LoRA."""

import json

import pytest
from backbones import make
from safetensors.torch import load_file
from test_parallel import free_port, start
from toy import metrics, run_config, save_task

from foreword.config import to_dict
from foreword.train.job import train

JOBS = {
    "fine_tune": {"method": "fine_tune"},
    "top_layers": {"method": "top_layers", "batch": {"rows": 3, "accumulation": 2}},
    "adapter": {"method": "adapter", "adapter": {"bottleneck": 3}, "optim": {"lr": 1e-3}},
    "lora": {"method": "lora", "optim": {"lr": 1e-3}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Run all jobs with one process and with two; return the folder."""
    root = tmp_path_factory.mktemp("parallel")
    backbone, task = make("gpt2"), save_task(root / "task")  # without dropout: two processes draw other masks than one
    backbone.model.save_pretrained(root / "backbone")
    backbone.tokenizer.save_pretrained(root / "backbone")

    def configs(where):
        short = {"steps": 6, "dev": {"every": 3}, "checkpoint": {"every": 3}}
        return [run_config(root / "backbone", task, root / where / name, **short, **job) for name, job in JOBS.items()]

    for config in configs("one"):
        train(config, progress=False)
    (root / "jobs.json").write_text(json.dumps(to_dict({"single": configs("two"), "resume": [], "gang": []})))
    port = free_port()
    workers = [start(rank, port, root / "jobs.json") for rank in (0, 1)]
    outputs = [worker.communicate(timeout=240) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    return root


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_give_the_one_process_result(root, job):
    ours, theirs = metrics(root / "one" / job), metrics(root / "two" / job)
    assert len(ours) == len(theirs) == 8
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)
        assert mine.get("tokens") == other.get("tokens")
    name = "model.safetensors" if job == "fine_tune" else "adapter_model.safetensors"
    one, two = (load_file(root / where / job / "artifact" / name) for where in ("one", "two"))
    assert set(one) == set(two)
    assert all((one[key] - two[key]).abs().max() < 1e-3 for key in one)
