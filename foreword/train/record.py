"""The run directory: config, metrics, and checkpoints from which a killed run goes on as if nothing had happened.

Everything is written beside its place, flushed to disk and renamed, so that a reader sees the old file or the new
one. Safetensors and JSON only. `metrics.jsonl` has no clock in it: two runs of one config are byte-identical.
"""

import json
import os
import shutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foreword.config import build, dump_yaml, load_yaml
from foreword.errors import ConfigError, TrainingError
from foreword.train.run_config import Recipe, RunConfig, differences

CONFIG, METRICS, TIMES = "config.yaml", "metrics.jsonl", "times.jsonl"
CHECKPOINTS, ARTIFACT = "checkpoints", "artifact"
TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on: tensors by name, and a JSON-able state."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class RunRecord:
    """One run directory, opened for writing."""

    def __init__(self, directory: str | Path, keep: int = 2) -> None:
        """Open the directory; leftovers of writes that were cut off are removed.

        Args:
            directory: an existing run directory.
            keep: how many checkpoints stay.
        """
        self.directory = Path(directory)
        self.checkpoints = self.directory / CHECKPOINTS
        self.keep = keep
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for leftover in self.checkpoints.glob(".*"):
            shutil.rmtree(leftover)
        self._metrics = (self.directory / METRICS).open("a", encoding="utf-8")
        self._times = (self.directory / TIMES).open("a", encoding="utf-8")

    @classmethod
    def create(cls, config: RunConfig) -> "RunRecord":
        """Return the record of a new run, its resolved config written.

        Raises:
            ConfigError: the directory already holds a run.
        """
        directory = Path(config.run_dir)
        if (directory / CONFIG).exists():
            raise ConfigError(
                f"run_dir = {str(directory)!r} already holds a run; go on with --resume {directory}, or name another"
            )
        directory.mkdir(parents=True, exist_ok=True)
        write_config(config, directory)
        return cls(directory, config.checkpoint.keep)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Append one row to metrics.jsonl."""
        self._metrics.write(json.dumps(row) + "\n")

    def times(self, row: Mapping[str, Any]) -> None:
        """Append one row to times.jsonl, the only file with wall-clock figures."""
        self._times.write(json.dumps(row) + "\n")
        self._times.flush()

    def flush(self) -> None:
        """Hand all rows so far to the operating system."""
        self._metrics.flush()

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step atomically and drop those that are too old."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        state = {**state, "step": step, "metrics_bytes": self._metrics.tell()}
        _write_directory(self.checkpoints / f"step-{step:08d}", tensors, state)
        self._rotate()

    def save_best(self, step: int, tensors: Mapping[str, Tensor]) -> str:
        """Write the parameters of the best step so far atomically and return the name they are found by."""
        name = f"best-{step:08d}"
        _write_directory(self.checkpoints / name, tensors, {"step": step})
        return name

    def go_back_to(self, checkpoint: Checkpoint | None) -> None:
        """Cut metrics.jsonl to what it was at a checkpoint, to nothing without one.

        Raises:
            TrainingError: metrics.jsonl has lost rows since.
        """
        length = checkpoint.state["metrics_bytes"] if checkpoint else 0
        size = (self.directory / METRICS).stat().st_size
        if size < length:
            raise TrainingError(f"{METRICS} has {size} bytes, the checkpoint was saved at {length}; restore the file")
        self._metrics.truncate(length)
        self._metrics.seek(length)

    def last_checkpoint(self) -> str:
        """Return the newest checkpoint's name, or a phrase saying that there is none."""
        saved = _steps(self.checkpoints)
        return saved[-1].name if saved else "none yet"

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._times.close()

    def _rotate(self) -> None:
        kept = _steps(self.checkpoints)[-self.keep :]
        named = {json.loads((path / STATE).read_text())["best"].get("name") for path in kept}
        for path in (*_steps(self.checkpoints), *self.checkpoints.glob("best-*")):
            if path not in kept and path.name not in named:
                _remove(path)


def read_latest(run_dir: str | Path, needs: Collection[str] = ()) -> Checkpoint | None:
    """Return the newest checkpoint of a run, or None.

    Args:
        run_dir: the run directory.
        needs: what its state must hold.

    Raises:
        TrainingError: it is damaged.
    """
    saved = _steps(Path(run_dir) / CHECKPOINTS)
    if not saved:
        return None
    found = _read_directory(saved[-1])
    if missing := sorted({"step", "metrics_bytes", *needs} - found.state.keys()):
        raise _damaged(saved[-1], f"{STATE} lacks {', '.join(missing)}")
    return found


def read_best(run_dir: str | Path, name: str) -> dict[str, Tensor]:
    """Return the parameters of the best step, as `RunRecord.save_best` named it."""
    return _read_directory(Path(run_dir) / CHECKPOINTS / name).tensors


def write_config(config: RunConfig, directory: Path) -> None:
    """Write the resolved config into a run directory, atomically."""
    scratch = directory / f".{CONFIG}"
    dump_yaml(config, scratch)
    scratch.replace(directory / CONFIG)


def discard_unstarted(run_dir: str | Path) -> None:
    """Remove a run that never finished a step, so that a mended config can take its directory; else do nothing.

    Only what a run writes is removed: the directory may hold other things.
    """
    directory = Path(run_dir)
    metrics = directory / METRICS
    if any((directory / CHECKPOINTS).glob("step-*")) or (metrics.is_file() and metrics.stat().st_size):
        return
    for name in (CHECKPOINTS, "tensorboard"):
        shutil.rmtree(directory / name, ignore_errors=True)
    for name in (CONFIG, METRICS, TIMES):
        (directory / name).unlink(missing_ok=True)
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


def read_config(run_dir: str | Path, wanted: Recipe | None = None) -> RunConfig:
    """Return the config that a run was started with, its directory being wherever it is now.

    Args:
        run_dir: the run directory.
        wanted: a config that must be the same, or None.

    Raises:
        ConfigError: no run there, or `wanted` differs; it names the fields.
    """
    path = Path(run_dir) / CONFIG
    if not path.is_file():
        raise ConfigError(f"run_dir = {str(run_dir)!r} holds no {CONFIG}, so there is no run to resume")
    saved = build(RunConfig, {**load_yaml(path), "run_dir": str(run_dir)})
    changed = differences(saved, wanted) if wanted is not None else []
    changed = [phrase for phrase in changed if not phrase.startswith("run_dir ")]
    if changed:
        raise ConfigError(f"a resumed run keeps its config: {'; '.join(changed)}; start a new run_dir for a change")
    return saved


def usage(step: int, seconds: float, trained: int, device: torch.device) -> dict[str, Any]:
    """Return the last row of times.jsonl: what a run took, in parameters, seconds of this process and bytes."""
    found = {"step": step, "seconds": round(seconds, 3), "trained": trained, "peak_bytes": peak_bytes()}
    if device.type == "cuda":
        found["device_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def peak_bytes() -> int:
    """Return this process's high-water mark of memory: its resident set, as the kernel keeps it since it started."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's figure would include the parent's before exec
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _steps(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("step-*"))


def _write_directory(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and state into a hidden neighbour, flush all to disk, and rename it to `path`."""
    scratch = path.with_name(f".{path.name}")
    scratch.mkdir()
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch / TENSORS)
    (scratch / STATE).write_text(json.dumps(state, sort_keys=True), encoding="utf-8")
    for file in (scratch / TENSORS, scratch / STATE, scratch):
        _to_disk(file)
    if path.exists():  # written by a run that was killed after this and goes on from before it
        _remove(path)
    scratch.rename(path)
    _to_disk(path.parent)


def _read_directory(path: Path) -> Checkpoint:
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError(f"{STATE} holds {type(state).__name__}, not a mapping")
        return Checkpoint(load_file(path / TENSORS), state)
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, what: str) -> TrainingError:
    return TrainingError(f"checkpoint {str(path)!r} is damaged ({what}); delete it to go on from an older one")


def _remove(path: Path) -> None:
    """Delete a directory so that it is never seen half deleted."""
    doomed = path.with_name(f".old-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
