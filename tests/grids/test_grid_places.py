"""In this process, in two workers and on Ray the same table; a killed worker and a killed driver lose nothing."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gridkit import grid_tree, make_grid, with_store

import foreword
from foreword.errors import ConfigError
from foreword.experiments.grid.drive import run_grid
from foreword.experiments.grid.page import write_page
from foreword.experiments.grid.work import TRAINED

ROOT = Path(foreword.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def here(ground, tmp_path_factory):
    """The table of the grid run in this process."""
    folder = tmp_path_factory.mktemp("here")
    return table(with_store(make_grid(ground), folder / "store"), folder)


def table(grid, folder, **place) -> bytes:
    ran = run_grid(grid, tell=lambda line: None, **place)
    assert not ran.failed
    write_page(ran, folder)
    return (folder / "results.csv").read_bytes()


def finished(store: Path) -> dict[str, bytes]:
    """The runs that were trained to the end, with what was written then."""
    return {path.parent.name: path.read_bytes() for path in store.glob(f"*/{TRAINED}")}


def test_two_workers_give_the_table_and_a_killed_one_loses_nothing(ground, here, tmp_path):
    grid = with_store(make_grid(ground), tmp_path / "store")
    killed: list[int] = []
    kept: dict[str, bytes] = {}

    def kill_one(line: str) -> None:
        if " done " in line and not killed:  # one run is done, the other worker is at work
            kept.update(finished(tmp_path / "store"))
            busy = [child for child in multiprocessing.active_children() if child.is_alive()]
            os.kill(busy[-1].pid, signal.SIGKILL)
            killed.append(busy[-1].pid)
        lines.append(line)

    lines: list[str] = []
    ran = run_grid(grid, workers=2, tell=kill_one)
    write_page(ran, tmp_path)
    assert killed and kept and not ran.failed
    assert (tmp_path / "results.csv").read_bytes() == here
    after = finished(tmp_path / "store")
    assert {address: after[address] for address in kept} == kept


def test_a_killed_driver_loses_nothing(ground, here, tmp_path):
    (tmp_path / "grid.yaml").write_text(json.dumps({**grid_tree(ground), "store": str(tmp_path / "store")}))
    words = [sys.executable, "-m", "foreword", "grid", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen([*words, "--workers", "2"], env=ENVIRONMENT, stderr=log, stdout=log)
        while not finished(tmp_path / "store"):
            assert driver.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.02)
        children = Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    kept = finished(tmp_path / "store")
    assert kept and not (tmp_path / "out").exists()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(Path(f"/proc/{child}").exists() for child in children)  # its workers stopped too
    again = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out" / "results.csv").read_bytes() == here
    after = finished(tmp_path / "store")
    assert {address: after[address] for address in kept} == kept


def test_ray_gives_the_table(ground, here, tmp_path):
    pytest.importorskip("ray")
    words = ["--ray", "local", "--out", str(tmp_path / "out")]
    (tmp_path / "grid.yaml").write_text(json.dumps({**grid_tree(ground), "store": str(tmp_path / "store")}))
    command = [sys.executable, "-m", "foreword", "grid", str(tmp_path / "grid.yaml"), *words]
    patient = {**ENVIRONMENT, "RAY_raylet_start_wait_time_s": "200"}  # a loaded machine starts Ray slowly
    ran = subprocess.run(command, env=patient, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "results.csv").read_bytes() == here


def test_a_worker_that_always_dies_is_given_up_with_the_reason(ground, tmp_path, monkeypatch):
    """Out of memory looks like this: the process is gone each time."""
    grid = with_store(make_grid(ground, axes={"seed": [0]}, scoring={"untouched": False}), tmp_path / "store")

    def kill_all(line: str) -> None:
        if " running " in line:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    ran = run_grid(grid, workers=1, tell=kill_all)
    assert [row.state for row in ran.rows] == ["failed"]
    assert "ended with code -9, 3 times" in ran.rows[0].detail
    (record,) = (tmp_path / "store").glob("*/failure.json")
    assert "3 times" in json.loads(record.read_text())["reason"]


def test_workers_and_ray_together_are_refused(ground):
    with pytest.raises(ConfigError, match="not both"):
        run_grid(make_grid(ground), workers=2, ray="local")
