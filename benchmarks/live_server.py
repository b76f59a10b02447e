"""A store of random forewords, and `foreword serve` over it in a process of its own, watched from outside."""

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch

from foreword.artifact import save_prompt
from foreword.backbone import Backbone
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.serve.loading import served_bytes


def fill(store: Path, backbone: Backbone, count: int, length: int) -> int:
    """Write `count` random prefixes into a store and return the bytes one takes in memory."""
    prompt = make_prompt(PromptSpec(length=length), backbone).fold()
    for number in range(count):
        draw = torch.Generator().manual_seed(number)
        for table in prompt.tables.values():
            table.set(torch.randn(table().shape, generator=draw))
        save_prompt(prompt, store / f"f{number}", backbone)
    return served_bytes(prompt.eval().realise(backbone))


@dataclass
class Server:
    """A server's process and what the kernel and `/metrics` say of it."""

    process: subprocess.Popen
    url: str
    samples: list[dict[str, float]] = field(default_factory=list)

    def sample(self, http: httpx.Client, start: float) -> None:
        """Take one line of the memory curve."""
        folder = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        self.samples.append(
            {
                "sec": round(time.perf_counter() - start, 1),
                "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
                "files": len(os.listdir(folder / "fd")),
                "threads": int(status["Threads"]),
                **figures(http),
            }
        )


def figures(http: httpx.Client) -> dict[str, float]:
    """Return the pool's and the engine's figures from `/metrics`."""
    found = re.findall(r"^foreword_(pool_\w+|engine_r\w+) ([\d.e+]+)$", http.get("/metrics").text, re.MULTILINE)
    return {name: float(value) for name, value in found if not name.endswith("_created")}


def start(args: argparse.Namespace, store: Path, pool_bytes: int, *more: str) -> Server:
    """Start a server on a free port and wait until it is ready."""
    command = [sys.executable, "-m", "foreword", "serve", "--backbone", args.backbone, "--store", str(store)]
    command += ["--port", "0", "--threads", str(args.threads), *more]
    command += [f"pool_bytes={pool_bytes}", f"capacity.rows={args.rows}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if found := re.search(r"http://[\d.]+:\d+", line):
            threading.Thread(target=lambda: [None for _ in process.stdout], daemon=True).start()
            return Server(process, found[0])
    raise SystemExit(f"the server ended with code {process.wait()} before it was ready")
