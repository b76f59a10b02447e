"""A driver for test_kill: imports once, then runs every attempt at a job in a forked child and kills it.

Called as `python forked.py CONFIG.json SEED KILLS`; prints one JSON line with what happened.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from foreword.config import build
from foreword.train.job import resume, train
from foreword.train.run_config import RunConfig

LONGEST_SEC = 1.5


def attempt(tree: dict, run_dir: Path) -> None:
    """Train, or go on with what is there; never returns."""
    torch.set_num_threads(1)
    try:
        if (run_dir / "config.yaml").exists():
            resume(run_dir, progress=False)
        else:
            train(build(RunConfig, {**tree, "run_dir": str(run_dir)}), progress=False)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def ended(child: int) -> int | None:
    """Return the child's exit code if it has ended."""
    pid, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None


def kill_at(child: int, run_dir: Path, moment: float, while_saving: bool) -> int | None:
    """Kill the child at a moment, or as soon after it as a checkpoint is being written; its exit code if it ended."""
    due = time.monotonic() + moment
    while (code := ended(child)) is None:
        if time.monotonic() >= due and (not while_saving or any((run_dir / "checkpoints").glob(".step-*"))):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.0 if while_saving else 0.002)
    return code


def main() -> None:
    tree, seed, kills = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3])
    root, draw, done = Path(sys.argv[1]).parent, random.Random(seed), 0
    finished, half_written, half_steps = [], 0, []
    while done < kills or not finished:
        run_dir = root / f"killed-{len(finished)}"
        child = os.fork()
        if child == 0:
            attempt(tree, run_dir)
        last = done >= kills
        code = kill_at(child, run_dir, 1e9 if last else draw.uniform(0, LONGEST_SEC), not last and done % 3 == 0)
        if code is None:
            done += 1
            half_written += any((run_dir / "checkpoints").glob(".step-*"))
            half_steps.append(max((int(p.name[5:]) for p in run_dir.glob("checkpoints/step-*")), default=0))
        elif code:
            sys.exit(f"an attempt failed with exit code {code}")
        else:
            finished.append(run_dir.name)
    print(json.dumps({"finished": finished, "kills": done, "half_written": half_written, "steps": half_steps}))


if __name__ == "__main__":
    main()
