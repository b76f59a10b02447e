"""Where curves go besides metrics.jsonl: TensorBoard files, Weights & Biases, MLflow. Imported when first used."""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from foreword.config import to_dict
from foreword.errors import MissingExtraError
from foreword.train.record import CHECKPOINTS
from foreword.train.run_config import Recipe


class Sink(Protocol):
    """Takes scalars of steps."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the scalars of one step."""
        ...

    def close(self) -> None:
        """Write what is still held."""
        ...


class TensorBoard:
    """Event files under `<run_dir>/tensorboard`; rows after the step a run goes on from are purged."""

    def __init__(self, run_dir: Path, recipe: Recipe, step: int) -> None:
        module = _import("torch.utils.tensorboard", "tensorboard")
        self.writer = module.SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the scalars of one step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still held."""
        self.writer.close()


class WandB:
    """A Weights & Biases run named after the run directory; its own settings come from its environment variables."""

    def __init__(self, run_dir: Path, recipe: Recipe, step: int) -> None:
        module = _import("wandb", "wandb")
        known = _known_id(run_dir, "wandb", step)
        settings: dict[str, Any] = {"id": known, "resume": "allow"} if known else {}
        self.run = module.init(
            project="foreword", name=run_dir.name, dir=str(run_dir), config=to_dict(recipe), **settings
        )
        _keep_id(run_dir, "wandb", self.run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the scalars of one step."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is still held."""
        self.run.finish()


class MLflow:
    """An MLflow run named after the run directory, on the tracking server its environment variables name."""

    def __init__(self, run_dir: Path, recipe: Recipe, step: int) -> None:
        self.module = _import("mlflow", "mlflow")
        known = _known_id(run_dir, "mlflow", step)
        self.run = self.module.start_run(run_id=known, run_name=run_dir.name, nested=True)
        _keep_id(run_dir, "mlflow", self.run.info.run_id)
        self.module.log_dict(to_dict(recipe), "config.json", run_id=self.run.info.run_id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the scalars of one step."""
        self.module.log_metrics(dict(values), step=step, run_id=self.run.info.run_id)

    def close(self) -> None:
        """Write what is still held."""
        self.module.end_run()


SINKS: dict[str, Callable[[Path, Recipe, int], Sink]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def open_sinks(run_dir: Path, recipe: Recipe, step: int = 0) -> list[Sink]:
    """Return the trackers that the recipe names.

    Args:
        run_dir: the run directory.
        recipe: what is trained; `recipe.track` names the trackers.
        step: the step that the run goes on from.

    Raises:
        MissingExtraError: a tracker's library is not installed.
    """
    return [SINKS[name](run_dir, recipe, step) for name in recipe.track]


def _known_id(run_dir: Path, library: str, step: int) -> str | None:
    """Return the tracker's own name of the run that goes on from `step`; None for a run that starts."""
    path = run_dir / CHECKPOINTS / f"{library}.id"
    return path.read_text(encoding="utf-8") if step and path.is_file() else None


def _keep_id(run_dir: Path, library: str, name: str) -> None:
    """Keep the tracker's name of a run beside its checkpoints, so that a resumed run's curves go on in one piece."""
    (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    (run_dir / CHECKPOINTS / f"{library}.id").write_text(name, encoding="utf-8")


def _import(module: str, library: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingExtraError(f"track = {library!r} needs {library}: pip install 'foreword[track]'") from None
