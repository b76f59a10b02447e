"""What the transfer study is made of: its settings, its training runs (skipped when done), its zero-shot figures."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from foreword.artifact import load_prompt
from foreword.backbone import Backbone, load_backbone
from foreword.compose.projector import Projector
from foreword.compose.transfer import Curve, ZeroShot, read_curve, zero_shot
from foreword.config import build
from foreword.data.files import write_atomic
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.tasks import Task, get_task
from foreword.train.job import load_data, resume, train
from foreword.train.record import ARTIFACT, CONFIG, read_config
from foreword.train.run import make_learner
from foreword.train.run_config import RunConfig

FAMILIES = {
    "e2e": "table", "webnlg": "table", "rnnlg_restaurant": "table", "rnnlg_hotel": "table", "dart": "table",
    "sst2": "label", "mrpc": "label", "rte": "label", "cb": "label", "aeslc": "summary", "dialogsum": "summary",
}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the study's figures; a folder holds one study."""

    backbone: str
    pairs: list[list[str]]
    tasks: list[str]
    kind: str = "prompt"
    length: int = 20
    steps: int = 400
    every: int = 20
    rows: int = 16
    lr: float = 0.3
    limit: int | None = 5000
    dev_limit: int = 100
    generate: int = 100
    max_source: int = 192
    seeds: int = 3
    query_steps: int = 40
    projector_steps: int = 400
    held_inside: list[str] = field(default_factory=list)
    held_outside: list[str] = field(default_factory=list)

    @property
    def training_tasks(self) -> list[str]:
        """Tasks that projectors may see: those neither held out themselves nor of a family held out as a whole."""
        held = {*self.held_inside, *self.held_outside}
        outside = {FAMILIES[task] for task in self.held_outside}
        return [task for task in self.tasks if task not in held and FAMILIES[task] not in outside]


@dataclass(frozen=True, eq=False)
class Study:
    """A folder of finished pieces; whatever is there is not made again."""

    settings: Settings
    out: Path
    device: str = "cpu"
    tell: Callable[[str], None] = print
    loaded: dict[str, Backbone] = field(default_factory=dict)
    projectors: dict[tuple, Projector] = field(default_factory=dict)

    def begin(self) -> None:
        """Write the settings, or stop where the folder holds a study with others."""
        path, mine = self.out / "settings.json", asdict(self.settings)
        if path.is_file() and json.loads(path.read_text()) != mine:
            raise SystemExit(f"{path} holds a study with other settings; give another --out, or the same settings")
        write_atomic(path, json.dumps(mine, indent=2) + "\n")

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the JSON piece of a name, made now if it is not there."""
        path = self.out / "pieces" / f"{name}.json"
        if not path.is_file():
            self.tell(f"making {name}")
            write_atomic(path, json.dumps(make(), indent=2) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))

    def backbone(self, source: str) -> Backbone:
        """Return a frozen model, loaded once."""
        if source not in self.loaded:
            self.loaded[source] = load_backbone(source, device=self.device)
        return self.loaded[source]

    @cached_property
    def dev(self) -> dict[str, list]:
        """The dev records of every task, the ones that runs look at."""
        return {task: get_task(task).load("dev", self.settings.dev_limit) for task in self.settings.tasks}

    def run(
        self, source: str, task: str, name: str, seed: int, start: Path | None = None, steps: int | None = None
    ) -> Path:
        """Return the run directory of a prompt trained on a task, from a plain start or from a saved prompt."""
        place = self.out / "runs" / label(source) / task / f"{name}-s{seed}"
        if (place / ARTIFACT).is_dir():
            return place
        s = self.settings
        plain = {"name": "vocabulary" if s.kind == "prompt" else "data"}
        tree = {
            "task": task, "backbone": {"source": source, "device": self.device}, "run_dir": str(place),
            "prompt": {
                "kind": s.kind, "length": s.length,
                "init": plain if start is None else {"name": "artifact", "artifact": str(start)},
            },
            "optim": {"name": "adafactor" if s.kind == "prompt" else "adamw", "lr": s.lr},
            "schedule": {"name": "constant"}, "batch": {"rows": s.rows}, "steps": steps or s.steps,
            "data": {"limit": s.limit, "dev_limit": s.dev_limit, "max_source": s.max_source},
            "dev": {"every": min(s.every, steps or s.steps)}, "checkpoint": {"every": 100, "keep": 1}, "track": [],
            "seed": seed_of(source, task, seed),
        }
        self.tell(f"training {label(source)} {task} {name} seed {seed}")
        if (place / CONFIG).is_file():  # begun and stopped, perhaps before its first checkpoint
            resume(place, progress=False)
        else:
            train(build(RunConfig, tree), progress=False)
        return place

    def prompt(self, source: str, place: Path) -> SoftPrompt:
        """Return the prompt of a run or of an artefact."""
        return load_prompt(place / ARTIFACT if (place / ARTIFACT).is_dir() else place, self.backbone(source))

    def zero_shot(self, name: str, source: str, task: str, prompt: SoftPrompt | None, generated: int = 0) -> ZeroShot:
        """Return the piece with a prompt's loss (and score) on a task's dev records."""

        def make() -> dict[str, Any]:
            job, backbone = get_task(task), self.backbone(source)
            return asdict(zero_shot(backbone, prompt, _cut(job, self.settings), self.dev[task], generated=generated))

        return ZeroShot(**self.once(name, make))

    def outcome(self, source: str, task: str, place: Path, start: SoftPrompt | None = None) -> tuple[Curve, ZeroShot]:
        """Return a run's curve, from the loss of its start if that is given, and its final loss and score."""
        key = f"outcomes/{label(source)}/{task}/{place.name}"
        first = None if start is None else self.zero_shot(f"{key}-start", source, task, start).loss
        final = self.zero_shot(f"{key}-end", source, task, self.prompt(source, place), self.settings.generate)
        return read_curve(place, start=first), final

    def plain_start(self, source: str, task: str, seed: int) -> float:
        """Return the loss of a run's plain initialisation, drawn again from its config."""
        name = f"outcomes/{label(source)}/{task}/own-s{seed}-start"

        def make() -> dict[str, Any]:
            config, backbone = read_config(self.run(source, task, "own", seed)), self.backbone(source)
            learner, _ = make_learner(config, backbone, load_data(config, backbone))
            return asdict(zero_shot(backbone, learner.prompt, _cut(get_task(task), self.settings), self.dev[task]))

        return ZeroShot(**self.once(name, make)).loss


def _cut(task: Task, settings: Settings) -> Task:
    """Return the task with the study's truncation of sources."""
    return replace(task, max_source=settings.max_source)


def label(source: str) -> str:
    """Return a backbone's short name."""
    return Path(source).name


def seed_of(source: str, task: str, seed: int) -> int:
    """Return a run's own seed: equal seeds would start every task's prompt from the same words, and look alike."""
    return int.from_bytes(hashlib.sha256(f"{label(source)}/{task}/{seed}".encode()).digest()[:4]) // 2
