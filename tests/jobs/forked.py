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


def half_written(run_dir: Path, since: float) -> bool:
    """Whether a checkpoint lies there unfinished that was begun after `since` (seconds, wall clock)."""
    try:
        return any(path.stat().st_mtime >= since for path in (run_dir / "checkpoints").glob(".step-*"))
    except FileNotFoundError:  # finished between the listing and the look
        return False


def kill_at(child: int, run_dir: Path, moment: float, while_saving: bool) -> int | None:
    """Kill the child at a moment, or as soon after it as a checkpoint is being written; its exit code if it ended."""
    started, due = time.time(), time.monotonic() + moment
    while (code := ended(child)) is None:
        if time.monotonic() >= due and (not while_saving or half_written(run_dir, started)):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.0 if while_saving else 0.002)
    return code


def main() -> None:
    tree, seed, kills = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3])
    root, draw, done = Path(sys.argv[1]).parent, random.Random(seed), 0
    finished, cut_off, steps, whole_sec = [], 0, [], 0.0
    while done < kills or len(finished) < 2:
        run_dir = root / f"killed-{len(finished)}"
        started = time.time()
        if (child := os.fork()) == 0:
            attempt(tree, run_dir)
        spare = not finished or done >= kills  # the first run is only timed; the last is let through
        moment = 1e9 if spare else draw.uniform(0, whole_sec)
        code = kill_at(child, run_dir, moment, not spare and done % 3 == 0)
        if code is None:
            done += 1
            cut_off += half_written(run_dir, started)
            steps.append(max((int(path.name[5:]) for path in run_dir.glob("checkpoints/step-*")), default=0))
        elif code:
            sys.exit(f"an attempt failed with exit code {code}")
        else:
            whole_sec = whole_sec or time.time() - started
            finished.append(run_dir.name)
    print(json.dumps({"finished": finished, "kills": done, "half_written": cut_off, "steps": steps}))


if __name__ == "__main__":
    main()
