"""Where jobs run: in this process, in local worker processes, or on a Ray cluster. All give the same events.

A worker that dies loses nothing that is finished: its job is handed out again and goes on from what is on disk, at
most `ATTEMPTS` times. When the driver dies its workers stop within a second, and the next driver goes on.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from foreword.errors import ConfigError, MissingExtraError, TrainingError
from foreword.experiments.grid.work import (
    Job,
    Outcome,
    folder_of,
    pack_job,
    record_failure,
    unpack_job,
    unscored,
    work,
)

ATTEMPTS = 3
TICK_SEC = 0.5


@dataclass(frozen=True)
class Event:
    """What happened: job `number` was `started`, `ended` (with its outcomes) or `lost`; or nothing did (`tick`)."""

    kind: str
    number: int = -1
    outcomes: tuple[Outcome, ...] = ()
    detail: str = ""


def in_process(jobs: Sequence[Job]) -> Iterator[Event]:
    """Do the jobs here, one after the other."""
    for number, job in enumerate(jobs):
        yield Event("started", number)
        yield Event("ended", number, tuple(work(job)))


@dataclass(eq=False)
class _Worker:
    """A worker process, this end of its pipe, and the job it is at."""

    process: BaseProcess
    pipe: Connection
    number: int | None = None


@dataclass
class _Queue:
    """Jobs that wait, and how often each was handed out."""

    waiting: list[int]
    handed: dict[int, int] = field(default_factory=dict)

    def take(self) -> int | None:
        """Return the next job, or None."""
        if not self.waiting:
            return None
        number = self.waiting.pop(0)
        self.handed[number] = self.handed.get(number, 0) + 1
        return number

    def lost(self, number: int, jobs: Sequence[Job], why: str) -> Event:
        """Put a lost job back, or give it up after too many attempts."""
        if self.handed[number] < ATTEMPTS:
            self.waiting.append(number)
            return Event("lost", number, detail=why)
        reason = f"{why}, {ATTEMPTS} times"
        for piece in jobs[number].pieces:
            store = jobs[number].store
            record_failure(folder_of(store, piece.address), reason, targets=unscored(store, piece))
        return Event("ended", number, tuple(Outcome(p.address, "failed", reason) for p in jobs[number].pieces))


def in_workers(jobs: Sequence[Job], count: int) -> Iterator[Event]:
    """Do the jobs in `count` processes of this machine; a process that dies is replaced."""
    queue = _Queue(list(range(len(jobs))))
    workers = [_start_worker() for _ in range(min(count, len(jobs)))]
    try:
        while queue.waiting or any(worker.number is not None for worker in workers):
            for worker in workers:
                if worker.number is None and (number := queue.take()) is not None:
                    worker.number = number
                    worker.pipe.send(pack_job(jobs[number]))
                    yield Event("started", number)
            ready = wait([worker.pipe for worker in workers if worker.number is not None], TICK_SEC)
            for place, worker in enumerate(workers):
                if worker.pipe in ready:
                    yield _receive(workers, place, queue, jobs)
            yield Event("tick")
    finally:
        for worker in workers:
            _stop(worker)


def _receive(workers: list[_Worker], place: int, queue: _Queue, jobs: Sequence[Job]) -> Event:
    """Return what a worker's pipe holds: outcomes, or the news that the worker has died."""
    worker = workers[place]
    number, worker.number = worker.number, None
    try:
        return Event("ended", number, tuple(Outcome(**row) for row in worker.pipe.recv()))
    except (EOFError, ConnectionResetError):
        worker.process.join()
        workers[place] = _start_worker()
        return queue.lost(number, jobs, f"the worker process ended with code {worker.process.exitcode}")


def _start_worker() -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would copy PyTorch's threads in the middle of something
    here, there = context.Pipe()
    process = context.Process(target=serve_jobs, args=(there, os.getpid()), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


def _stop(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.terminate()
    worker.process.join()


def serve_jobs(pipe: Connection, driver: int) -> None:
    """Do the jobs that come through a pipe until it is closed; end at once when the driver is gone."""
    threading.Thread(target=_end_with, args=(driver,), daemon=True).start()
    while True:
        try:
            job = unpack_job(pipe.recv())
        except EOFError:
            return
        pipe.send([vars(outcome) for outcome in work(job)])


def _end_with(driver: int) -> None:
    while os.getppid() == driver:
        time.sleep(TICK_SEC)
    os._exit(1)


def on_ray(jobs: Sequence[Job], address: str | None) -> Iterator[Event]:
    """Do the jobs on a Ray cluster; the store must be a folder that all its machines see under the same path.

    Args:
        jobs: what to do.
        address: of the cluster (`auto` for the one `ray start` started here); None or `local` starts one for this call.

    Raises:
        MissingExtraError: Ray is not installed.
        TrainingError: the cluster cannot be reached.
    """
    ray = _ray()
    given = None if address in (None, "", "local") else address
    started_here = not ray.is_initialized()
    if started_here:
        try:
            ray.init(given, log_to_driver=False, include_dashboard=False if given is None else None)
        except Exception as error:  # Ray raises bare ones, as when its processes start too slowly
            raise TrainingError(f"Ray cluster {address!r}: {error}; start one with `ray start --head`") from None
    try:
        yield from _ray_events(ray, jobs)
    finally:
        if started_here:
            ray.shutdown()


def _ray_events(ray: Any, jobs: Sequence[Job]) -> Iterator[Event]:
    def remote(job: Job) -> Any:
        task = ray.remote(num_cpus=job.threads, max_retries=0)(_work_packed)
        return task.remote(pack_job(job))

    queue = _Queue(list(range(len(jobs))))
    running: dict[Any, int] = {}
    while queue.waiting or running:
        while (number := queue.take()) is not None:
            running[remote(jobs[number])] = number
            yield Event("started", number)
        ready, _ = ray.wait(list(running), timeout=TICK_SEC)
        for handle in ready:
            number = running.pop(handle)
            try:
                yield Event("ended", number, tuple(Outcome(**row) for row in ray.get(handle)))
            except ray.exceptions.RayError as error:
                why = f"the Ray worker was lost ({type(error).__name__})"
                yield queue.lost(number, jobs, why)
        yield Event("tick")


def _work_packed(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Do a packed job; what a Ray worker runs."""
    return [vars(outcome) for outcome in work(unpack_job(tree))]


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("running a grid on Ray needs ray: pip install 'foreword[ray]'") from None
    return ray


def check_places(workers: int, ray: str | None) -> None:
    """Check that one place is asked for.

    Raises:
        ConfigError: both, or a negative number of workers.
    """
    if workers < 0 or (workers and ray is not None):
        raise ConfigError(f"workers = {workers} and ray = {ray!r}: give a number of workers from 1, or Ray, not both")
