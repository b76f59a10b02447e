"""What a worker does: train runs (alone or as a gang), score them, and leave every outcome on disk.

A run's folder in the store is named by its address and holds

    run/               the run directory of `foreword train` (recipe, metrics, checkpoints, artefact)
    trained.json       written when training is done: a run without it goes on from its newest checkpoint
    scores/ADDRESS/    scores.json and predictions.jsonl of one target
    failure.json       why the last attempt failed, until one succeeds
    lock               held while somebody works here; the operating system lets go of it when a process dies

An untouched backbone has such a folder too, without a run.
"""

import contextlib
import dataclasses
import json
import math
import platform
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foreword.backbone import Backbone, bundled_backbones
from foreword.baselines.autoprompt.masked import MaskedBackbone
from foreword.baselines.autoprompt.trigger import METHOD as AUTOPROMPT
from foreword.config import build, to_dict
from foreword.data.files import write_atomic
from foreword.errors import ForewordError
from foreword.evaluate.dev import dev_evaluator
from foreword.evaluate.job import evaluate
from foreword.evaluate.runner import evaluate as score_outputs
from foreword.evaluate.runner import evaluate_outputs, prediction_rows, sample, write_scores
from foreword.evaluate.subject import Subject
from foreword.experiments.grid.address import scored_task, untouched_words
from foreword.experiments.grid.spec import Scoring, Target
from foreword.tasks import Task
from foreword.train.gang import resume_gang, train_gang
from foreword.train.job import load_frozen, resume, train
from foreword.train.parallel import World
from foreword.train.record import ARTIFACT, CHECKPOINTS, CONFIG
from foreword.train.run import TrainResult
from foreword.train.run_config import RunConfig
from foreword.train.trigger_run import load_readable, prepare

TRAINED, FAILURE, SCORES, RUN = "trained.json", "failure.json", "scores.json", "run"
PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class Piece:
    """One run, or one untouched backbone, and what it is to be scored on.

    Attributes:
        address: name of its folder.
        config: of the run; of an untouched backbone, a run that names backbone and task.
        targets: from a score's address to its target.
        trains: False for an untouched backbone.
        tasks: from a score's address to the task that a run which asks for it is of, where that is not the config's:
            tasks with the same training and dev rows have the same runs.
    """

    address: str
    config: RunConfig
    targets: dict[str, Target]
    trains: bool = True
    tasks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """What a worker is handed: pieces that share a backbone, where they live, how they are scored, CPU threads, and
    whether metrics that were left out are computed again.
    """

    pieces: tuple[Piece, ...]
    store: str
    scoring: Scoring
    threads: int = 1
    retry: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a piece ended: `done`, or `failed` with the reason; seconds of this attempt."""

    address: str
    state: str
    reason: str = ""
    seconds: float = 0.0


def pack_job(job: Job) -> dict[str, Any]:
    """Return a job as plain values that any process can be sent."""
    return to_dict(job)


def unpack_job(tree: dict[str, Any]) -> Job:
    """Return the job that `pack_job` packed."""
    return build(Job, tree)


def folder_of(store: str | Path, address: str) -> Path:
    """Return a piece's folder."""
    return Path(store) / address


def is_done(store: str | Path, piece: Piece) -> bool:
    """Return whether a piece is trained and scored on all its targets."""
    folder = folder_of(store, piece.address)
    if piece.trains and not (folder / TRAINED).is_file():
        return False
    return all((folder / "scores" / address / SCORES).is_file() for address in piece.targets)


def unscored(store: str | Path, piece: Piece) -> list[str] | None:
    """Return the addresses of the targets that a piece is not scored on, or not by every metric; None where it is not
    trained yet.
    """
    folder = folder_of(store, piece.address)
    if piece.trains and not (folder / TRAINED).is_file():
        return None
    places = {address: folder / "scores" / address for address in piece.targets}
    return [address for address, place in places.items() if not (place / SCORES).is_file() or left_out(place)]


def left_out(place: Path) -> list[str]:
    """Return the metrics that could not be computed where a target was scored, for want of Java or a library."""
    try:
        return list(json.loads((place / SCORES).read_text(encoding="utf-8")).get("skipped") or {})
    except (FileNotFoundError, NotADirectoryError):
        return []


def failure_of(store: str | Path, piece: Piece) -> dict[str, Any] | None:
    """Return the recorded failure that concerns a piece: of its training, or of scoring a target of its own.

    One run has one folder for all grids, so a failure may be about a target that another grid asks for.
    """
    try:
        failure = json.loads((folder_of(store, piece.address) / FAILURE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    targets = failure.get("targets")
    return failure if targets is None or set(targets) & set(piece.targets) else None


def work(job: Job) -> list[Outcome]:
    """Do a job and return one outcome a piece. A failure is recorded in the piece's folder and never raised.

    What is already there is not done again; what broke off goes on where it stood.
    """
    with _threads(job.threads), contextlib.ExitStack() as locks:
        for address in sorted({piece.address for piece in job.pieces}):  # a lock taken twice waits for itself
            locks.enter_context(locked(folder_of(job.store, address)))
        started = time.monotonic()
        fresh = [piece for piece in job.pieces if piece.trains and not _trained(job, piece)]
        if len(fresh) > 1:
            with contextlib.suppress(Exception):  # a member that fails is trained alone below, and fails there
                _train_together(job, fresh)
        return [_attempt(job, piece, started) for piece in job.pieces]


def _attempt(job: Job, piece: Piece, started: float) -> Outcome:
    folder = folder_of(job.store, piece.address)
    reasons: dict[str, str] = {}  # of each target whose scoring failed; the other ones go on
    failed: list[str] | None = None
    trace = ""
    try:
        if piece.trains and not _trained(job, piece):
            _train_alone(job, piece)
    except Exception as error:  # whatever it is, the grid goes on and the reason is kept
        reasons, trace = {"": _reason(error)}, traceback.format_exc()
    else:
        for address in piece.targets:
            try:
                _score_missing(job, piece, address)
            except Exception as error:
                reasons[address] = _reason(error)
                trace = trace or traceback.format_exc()
        failed = list(reasons)
    seconds = time.monotonic() - started
    if reasons:
        reason = "; ".join(dict.fromkeys(reasons.values()))
        record_failure(folder, reason, trace, failed)
        return Outcome(piece.address, "failed", reason, seconds)
    if failure_of(job.store, piece) is not None:
        (folder / FAILURE).unlink(missing_ok=True)
    return Outcome(piece.address, "done", "", seconds)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ForewordError) else f"{type(error).__name__}: {error}"


def _trained(job: Job, piece: Piece) -> bool:
    return (folder_of(job.store, piece.address) / TRAINED).is_file()


def _placed(job: Job, piece: Piece) -> RunConfig:
    return dataclasses.replace(piece.config, run_dir=str(folder_of(job.store, piece.address) / RUN))


def _train_alone(job: Job, piece: Piece) -> None:
    config = _placed(job, piece)
    started = (Path(config.run_dir) / CONFIG).is_file()
    evaluator = dev_evaluator(config)
    if started:  # its address says that it is this run; what the address leaves out stays as the run began with it
        result = resume(config.run_dir, evaluator=evaluator, progress=False)
    else:
        result = train(config, evaluator=evaluator, progress=False)
    _write_trained(piece, folder_of(job.store, piece.address), result, 1)


def _train_together(job: Job, pieces: Sequence[Piece]) -> None:
    """Train pieces in one pass: those that never began in one gang, those that broke off in another."""
    placed = [(piece, _placed(job, piece)) for piece in pieces]
    begun = [(p, c) for p, c in placed if any((Path(c.run_dir) / CHECKPOINTS).glob("step-*"))]
    fresh = [(p, c) for p, c in placed if not (Path(c.run_dir) / CONFIG).is_file()]
    for members, again in ((begun, True), (fresh, False)):
        if len(members) < 2:
            continue
        configs = [config for _, config in members]
        evaluator = dev_evaluator(configs[0])
        if again:
            results = resume_gang([c.run_dir for c in configs], evaluator=evaluator, progress=False)
        else:
            results = train_gang(configs, evaluator=evaluator, progress=False)
        for (piece, _), result in zip(members, results, strict=True):
            _write_trained(piece, folder_of(job.store, piece.address), result, len(members))


def _score_missing(job: Job, piece: Piece, address: str) -> None:
    """Score a piece on a target unless that is done; with `retry`, compute also what was left out."""
    folder, target = folder_of(job.store, piece.address) / "scores" / address, piece.targets[address]
    task = scored_task(piece.tasks.get(address, piece.config.task), job.scoring, target)
    known = (folder / SCORES).is_file()
    if known and not (job.retry and left_out(folder)):
        return
    if not known or not _score_again(job, folder, target, task):
        _score(job, piece, folder, target, task)


def _score_again(job: Job, folder: Path, target: Target, task: Task) -> bool:
    """Compute a score anew from the outputs that it was taken of, as only a library was missing; return whether all
    outputs are still there.
    """
    records = sample(task.load(target.split), job.scoring.limit, job.scoring.seed)
    kept = folder / PREDICTIONS
    lines = kept.read_text(encoding="utf-8").split("\n") if kept.is_file() else []
    rows = [json.loads(line) for line in lines if line]
    if [row["source"] for row in rows] != [record.source for record in records]:
        return False
    outputs = [row["prediction"] for row in rows]
    found = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    scores = evaluate_outputs(task, records, outputs, target.split, job.scoring.resamples, job.scoring.seed)
    facts = {name: value for name, value in found.items() if not hasattr(scores, name)}
    write_scores(folder, scores, prediction_rows(records, outputs), facts)
    return True


def _score(job: Job, piece: Piece, folder: Path, target: Target, task: Task) -> None:
    """Score a run, or an untouched backbone, on one target and write it down."""
    scoring, config = job.scoring, piece.config
    backbone = _load_as_trained(config)
    if not piece.trains:
        plain = _untouched(config, backbone, task)

        def generate(sources: list[str]) -> list[str]:
            return plain.outputs(sources, task.generation, scoring.batch_size)

        scores, rows = score_outputs(generate, task, target.split, scoring.limit, scoring.seed, scoring.resamples)
        write_scores(folder, scores, rows, {"subject": plain.name})
        return
    found = evaluate(
        _placed(job, piece).run_dir, task, backbone=backbone, split=target.split, limit=scoring.limit,
        untouched=False, batch_size=scoring.batch_size, resamples=scoring.resamples, seed=scoring.seed,
    )
    found.write(folder)


def _load_as_trained(config: RunConfig) -> Backbone:
    return load_readable(config.backbone) if config.method == AUTOPROMPT else load_frozen(config, World())


def _untouched(config: RunConfig, backbone: Backbone, task: Task) -> Subject:
    """Return a backbone without anything learned; a masked one reads its template without trigger words."""
    if isinstance(backbone, MaskedBackbone):
        return Subject("untouched", backbone, trigger=dataclasses.replace(prepare(config, backbone).found, ids=()))
    limit = config.data.max_source or task.max_source
    return Subject("untouched", backbone, None, config.data.format, limit, untouched_words(config))


def _write_trained(piece: Piece, folder: Path, result: TrainResult, together: int) -> None:
    """Mark a run as trained, with what the page needs that is not in the run directory."""
    source = piece.config.backbone.source
    facts = {
        "address": piece.address,
        "method": piece.config.method,
        "steps": result.steps,
        "final_loss": result.final_loss,
        "best_dev": result.best_dev,
        "best_step": result.best_step,
        "seconds": result.seconds,
        "gang": together,
        "num_trained": _num_trained(result),
        "num_backbone": count_numbers(bundled_backbones().get(source, Path(source))),
        "num_stored": result.prompt.num_stored if result.prompt is not None else None,
        "machine": machine(),
    }
    write_atomic(folder / TRAINED, json.dumps(facts, indent=2, sort_keys=True) + "\n")


def _num_trained(result: TrainResult) -> int | None:
    """Return how many numbers were trained: a prompt's tables with their MLP, or all that a baseline saved."""
    if result.prompt is not None:
        return sum(parameter.numel() for parameter in result.prompt.parameters())
    return count_numbers(Path(result.run_dir) / ARTIFACT)


def count_numbers(folder: Path) -> int | None:
    """Return how many numbers the safetensors files of a folder hold; None where there are none."""
    from safetensors import safe_open

    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count or None


def machine() -> dict[str, Any]:
    """Return what a run ran on: platform, processor, threads, versions."""
    import transformers

    import foreword

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "platform": platform.platform(), "processor": processor(), "threads": torch.get_num_threads(), "gpu": gpu,
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "foreword": foreword.__version__,
    }


def processor() -> str:
    """Return the processor's name as the operating system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def record_failure(folder: Path, reason: str, trace: str = "", targets: Sequence[str] | None = None) -> None:
    """Write down why a piece failed, with the end of the traceback where there is one.

    Args:
        folder: the piece's.
        reason: in words.
        trace: the traceback.
        targets: addresses of the targets whose scoring failed; None where the training did.
    """
    record = {"reason": reason, "trace": trace[-4000:], "machine": machine(), "targets": targets}
    write_atomic(folder / FAILURE, json.dumps(record, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; wait for whoever has it. Without `fcntl` (Windows) nothing is locked."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run with so many CPU threads, and go back to what was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
