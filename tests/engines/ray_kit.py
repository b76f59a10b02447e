"""`foreword serve --ray local` as a process of its own, with a store of tiny forewords, for the tests of Ray Serve."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

PARTS = ("ray", "uvicorn", "aiohttp_cors", "watchfiles", "smart_open")
MISSING = [name for name in PARTS if importlib.util.find_spec(name) is None]
needs_ray = pytest.mark.skipif(bool(MISSING), reason=f"Ray Serve is missing ({', '.join(MISSING)}); make test-ray")
PATIENT = {**os.environ, "RAY_raylet_start_wait_time_s": "200", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
"""A loaded machine starts Ray slowly."""
START_SEC = 280


@dataclass
class Cluster:
    """A running command: where it listens, what it has said, and a client for a key."""

    process: subprocess.Popen
    url: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def events(self) -> list[dict]:
        """What the command itself logged; a replica's lines have Ray's label before them."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def client(self, key: str = "", **options) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, **options)

    def wait(self, true, seconds: float = 60.0):
        """Return what `true` gives once it is true."""
        end = time.monotonic() + seconds
        while not (found := true()):
            assert self.process.poll() is None and time.monotonic() < end, "".join(self.lines[-60:])
            time.sleep(0.1)
        return found


@contextlib.contextmanager
def on_ray(backbone: str, store: Path, *words: str, verb: str = "serve") -> Iterator[Cluster]:
    """Run the command until the block ends; SIGTERM then ends it, and it must exit 0."""
    command = [sys.executable, "-m", "foreword", verb, "--ray", "local", "--store", str(store), "--backbone", backbone,
               "--port", "0", "--threads", "1", *words]
    process = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, env=PATIENT)
    cluster = Cluster(process)
    reader = threading.Thread(target=lambda: cluster.lines.extend(process.stdout), daemon=True)
    reader.start()
    try:
        found = cluster.wait(lambda: [e["address"] for e in cluster.events if e["event"] == "listening"], START_SEC)
        cluster.url = found[0]
        yield cluster
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0, "".join(cluster.lines[-60:])
    finally:
        if process.poll() is None:  # a test has failed: Ray's own handler stops its processes
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        process.kill()
        reader.join(10)
        process.stdout.close()
