"""Twenty steps of the real command line against losses that were written down: any silent change of training shows.

After a change that is meant, run this file (`python tests/jobs/test_golden_trace.py`) and say why in docs/LOG.md.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from toy import metrics, run_config, save_backbone, save_task

from foreword.cli import main
from foreword.config import to_dict

GOLDEN = Path(__file__).with_name("golden") / "losses.json"
STEPS = {"steps": 20, "dev": {"every": 10}, "checkpoint": {"every": 0}}
JOBS = {
    "llama prefix": ("llama", {"prompt": {"length": 5}}),
    "llama prefix mlp, sequence sums": (
        "llama",
        {
            "prompt": {"length": 5, "reparam": "mlp", "reparam_width": 16, "init": {"name": "normal"}},
            "optim": {"lr": 8e-5},
            "loss": "sequence_sum",
            "batch": {"rows": 5, "accumulation": 2},
        },
    ),
    "llama prompt, adafactor": (
        "llama",
        {
            "prompt": {"kind": "prompt", "length": 6, "init": {"name": "uniform"}},
            "optim": {"name": "adafactor", "lr": 0.03},
            "schedule": {"name": "constant"},
            "batch": {"tokens": 80, "window": 4, "share_sources": True},
        },
    ),
    "t5 prefix": ("t5", {"prompt": {"length": 5, "init": {"name": "activations", "text": "a b"}}}),
    "llama fine_tune": ("llama", {"method": "fine_tune", "optim": {"lr": 1e-4}, "schedule": {"warmup": 5}}),
}


def trace(job: str, folder: Path) -> dict[str, list[float]]:
    """Run one job through the command line and return its losses, gradient norms and dev losses."""
    torch.set_num_threads(1)
    family, changes = JOBS[job]
    config = run_config(
        save_backbone(folder / "backbone", family), save_task(folder / "task"), folder / "run", **STEPS, **changes
    )
    (folder / "recipe.yaml").write_text(json.dumps(to_dict(config)))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    rows = metrics(folder / "run")
    return {name: [row[name] for row in rows if name in row] for name in ("loss", "grad_norm", "dev_loss")}


@pytest.mark.parametrize("job", JOBS)
def test_losses_are_the_ones_written_down(job, tmp_path):
    wanted = json.loads(GOLDEN.read_text(encoding="utf-8"))[job]
    got = trace(job, tmp_path)
    assert (len(got["loss"]), len(got["dev_loss"])) == (20, 2)
    for name, values in wanted.items():
        assert got[name] == pytest.approx(values, rel=1e-5 if name != "grad_norm" else 1e-4), name


def test_every_trace_learns():
    """The traces themselves are of runs that work: a golden record of a run that learns nothing guards nothing."""
    for job, values in json.loads(GOLDEN.read_text(encoding="utf-8")).items():
        assert values["dev_loss"][1] < values["dev_loss"][0] < values["loss"][0] + 0.5, job
        assert min(values["grad_norm"]) > 0, job


if __name__ == "__main__":
    traces = {}
    for name in JOBS:
        with tempfile.TemporaryDirectory() as scratch:
            traces[name] = trace(name, Path(scratch))
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(traces, indent=1) + "\n", encoding="utf-8")
