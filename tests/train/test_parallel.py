"""Two gloo processes give the one-process result: plain, accumulated, shared sources, sharded, a gang, resumed."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from backbones import make
from toy import metrics, run_config, save_backbone, save_task

import foreword
from foreword.artifact import load_prompt
from foreword.config import to_dict
from foreword.errors import BackboneError
from foreword.train.gang import train_gang
from foreword.train.job import train
from foreword.train.parallel import World, join_world, shard_weights

ROOT = Path(foreword.__file__).parents[1]
DIRECT = {"length": 4}
JOBS = {
    "mlp": {},
    "accumulated": {"batch": {"rows": 3, "accumulation": 2}, "loss": "sequence_sum", "prompt": DIRECT},
    "shared": {"batch": {"tokens": 60, "share_sources": True}, "prompt": {"kind": "prompt", "length": 3}},
    "sharded": {"shard": True, "prompt": DIRECT},
    "sharded-prompt": {"shard": True, "prompt": {"kind": "prompt", "length": 3}},
}


def start(rank: int, port: int, configs: Path) -> subprocess.Popen:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT}
    environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(configs)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run all jobs with one process and with two; return the folder and the two processes' facts."""
    root = tmp_path_factory.mktemp("parallel")
    backbone, task = save_backbone(root / "backbone"), save_task(root / "task")

    def configs(where):
        short = {"steps": 6, "dev": {"every": 3}, "checkpoint": {"every": 3}}
        return {
            name: run_config(backbone, task, root / where / name, **short, **changes) for name, changes in JOBS.items()
        }

    gang = {where: list(configs(f"{where}-gang").values())[:3] for where in ("one", "two")}
    for config in configs("one").values():
        train(config, progress=False)
    train_gang(gang["one"], progress=False)
    cut = root / "two" / "resumed"
    shutil.copytree(root / "one" / "mlp", cut)  # its newest checkpoint but one: two processes go on from there
    shutil.rmtree(cut / "artifact")
    shutil.rmtree(cut / "checkpoints" / "step-00000006")
    jobs = {"single": list(configs("two").values()), "resume": [str(cut)], "gang": gang["two"]}
    (root / "jobs.json").write_text(json.dumps(to_dict(jobs)))
    port = free_port()
    workers = [start(rank, port, root / "jobs.json") for rank in (0, 1)]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    return root, [json.loads((root / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def assert_alike(root: Path, one: str, two: str) -> None:
    ours, theirs = metrics(root / one), metrics(root / two)
    assert len(ours) == len(theirs) == 8
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)
        assert mine.get("tokens") == other.get("tokens")
    first, second = (load_prompt(root / name / "artifact") for name in (one, two))
    for table in first.tables:
        assert (first.table(table) - second.table(table)).abs().max() < 1e-3


@pytest.mark.parametrize("job", JOBS)
def test_two_processes_give_the_one_process_result(results, job):
    assert_alike(results[0], f"one/{job}", f"two/{job}")


@pytest.mark.parametrize("job", list(JOBS)[:3])
def test_a_gang_over_two_processes_gives_the_one_process_result(results, job):
    assert_alike(results[0], f"one-gang/{job}", f"two-gang/{job}")


def test_two_processes_go_on_from_one_processs_checkpoint(results):
    assert_alike(results[0], "one/mlp", "two/resumed")


def test_the_processes_were_two_and_each_held_half_of_the_layers(results):
    facts = results[1]
    assert [(f["rank"], f["size"], f["backend"]) for f in facts] == [(0, 2, "gloo"), (1, 2, "gloo")]
    whole, held = facts[0]["whole"], [f["held"] for f in facts]
    tables = 2 * 99 * 64 + 64  # embeddings, head and last norm stay whole
    assert sum(held) == pytest.approx(whole + tables, abs=8)
    assert max(held) < 0.6 * whole


def test_without_a_launcher_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join_world()
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    loss = torch.tensor(2.0)
    assert world.sum_gradients({}, loss) is loss
    assert world.sum_counts([[3, 4]]) == [[3, 4]]
    assert world.mean(torch.tensor(6.0), 4) == 1.5


def test_a_model_without_layers_is_refused():
    backbone = make("llama")
    backbone.model.model.layers = torch.nn.ModuleList()
    with pytest.raises(BackboneError, match="no list of layers"):
        shard_weights(backbone, World())
