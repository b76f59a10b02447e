"""Batch files: every line of an uploaded file answered in the background, behind the requests that people wait for.

A batch's state is a file of its own, and answers are appended as they come: after a crash or a restart the lines
without an answer are asked again, those with one are not. Where several servers share a store, one of them works on a
batch, and another goes on with it when that one ends.
"""

import asyncio
import contextlib
import json
import os
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from foreword.serve.answers import Wording
from foreword.serve.ask import Asked, requests_of
from foreword.serve.claims import claim
from foreword.serve.faults import ApiError, from_validation, shown
from foreword.serve.files import Files
from foreword.serve.openai_api import wording_of
from foreword.serve.protocol import BatchLine, BatchRequest, ChatRequest, CompletionRequest
from foreword.serve.request import Piece, Request, Ticket, add_up
from foreword.serve.service import Service
from foreword.serve.stream import merged
from foreword.serve.tenants import Tenant

FOLDER = ".batches"
BATCH_ID = re.compile(r"batch_[0-9a-f]{32}")
MOST_LINES = 50_000
LONGEST_LINE = 4 << 20  # bytes; a line is read while everybody else waits
AT_ONCE = 16  # lines of one batch under way; the queue's fairness does the rest
LOOK_SEC = 1.0
"""Between two looks for a wish of another server's to cancel a batch of ours."""
ADOPT_SEC = 30.0
"""Between two looks for batches that no server works on any more."""
BEHIND = -1  # priority: people who wait go first
KINDS: dict[str, type[CompletionRequest] | type[ChatRequest]] = {
    "/v1/completions": CompletionRequest, "/v1/chat/completions": ChatRequest,
}
State = dict[str, Any]


class Batches:
    """The batches of a server: their states on the disk, and the tasks that work on them."""

    def __init__(self, service: Service) -> None:
        self._service, self.files = service, Files(service.store)
        self._root = service.store / FOLDER
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._writing: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by tenant, as its quota is
        self._looking: asyncio.Task[None] | None = None
        self._ended: set[Path] = set()  # states that were seen to have ended: they never change again

    def start(self) -> None:
        """Go on with the batches that an earlier process left unfinished, now and whenever one is left."""
        self.adopt()
        self._looking = asyncio.get_running_loop().create_task(self._look())

    def adopt(self) -> None:
        """Go on with every batch that no server works on."""
        for path in sorted(self._root.glob("*/batch_*.json")) if self._root.is_dir() else ():
            if path.stem not in self._tasks and path not in self._ended and self._unfinished(path):
                tenant = self._service.keyring.holder(json.loads(path.read_text(encoding="utf-8"))["key_id"])
                if tenant is not None and tenant.name == path.parent.name:
                    self._go(tenant, path)
                else:
                    self._give_up(path, "the key that it was made with was revoked")

    async def stop(self) -> None:
        """Stop working; what is unfinished another server goes on with, or this one at the next start."""
        tasks = [task for task in (self._looking, *self._tasks.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def create(self, tenant: Tenant, asked: BatchRequest) -> State:
        """Begin a batch and return its state.

        Raises:
            ApiError: 404 no such file, 403 the tenant's place on the disk is used up.
        """
        state = await asyncio.to_thread(self._begin, tenant, asked)  # the file may be large
        if state["status"] == "in_progress":
            self._go(tenant, self._path(tenant, state["id"]))
        return told(state)

    def _begin(self, tenant: Tenant, asked: BatchRequest) -> State:
        """Check a batch's file and write its first state."""
        source = self.files.path(tenant, asked.input_file_id)
        faults, count = check_lines(source, asked.endpoint, self._service.wall.body_bytes)
        state: State = {
            "id": f"batch_{uuid.uuid4().hex}", "object": "batch", "endpoint": asked.endpoint,
            "input_file_id": asked.input_file_id, "completion_window": asked.completion_window,
            "status": "failed" if faults else "in_progress", "output_file_id": None, "error_file_id": None,
            "created_at": int(time.time()), "completed_at": None, "metadata": asked.metadata,
            "request_counts": {"total": 0 if faults else count, "completed": 0, "failed": 0},
            "errors": {"object": "list", "data": faults} if faults else None, "key_id": tenant.key_id,
        }
        if not faults:
            with self._service.storing(tenant, 1):  # how long the answers will be nobody knows
                state["output_file_id"], _ = self.files.make(tenant, "output.jsonl", "batch_output")
                state["error_file_id"], _ = self.files.make(tenant, "errors.jsonl", "batch_output")
        self._save(tenant, state)
        return state

    def state(self, tenant: Tenant, batch_id: str) -> State:
        """Return what is told of a tenant's batch.

        Raises:
            ApiError: 404, the same for another tenant's and for none.
        """
        path = self._path(tenant, batch_id)
        if not BATCH_ID.fullmatch(batch_id) or not path.is_file():
            raise ApiError(404, f"batch {shown(batch_id)} does not exist, or your key may not use it; GET /v1/batches "
                                "lists what it may use", param="batch_id", code="batch_not_found")
        return told(json.loads(path.read_text(encoding="utf-8")))

    def all(self, tenant: Tenant) -> list[State]:
        """Return a tenant's batches, the latest first."""
        folder = self._root / tenant.name
        found = [self.state(tenant, p.stem) for p in folder.glob("batch_*.json")] if folder.is_dir() else []
        return sorted(found, key=lambda state: (-state["created_at"], state["id"]))

    async def cancel(self, tenant: Tenant, batch_id: str) -> State:
        """Stop a batch and return its state; answers that are there stay.

        One that another server works on is `cancelling` until that server sees the wish, about a second later.

        Raises:
            ApiError: 404.
        """
        self.state(tenant, batch_id)
        path = self._path(tenant, batch_id)
        task = self._tasks.pop(batch_id, None)
        if task is not None and not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        held = claim(path.with_suffix(".lock"))
        full = json.loads(path.read_text(encoding="utf-8"))
        if held is None:
            path.with_suffix(".cancel").touch()
            return told(full | ({"status": "cancelling"} if full["status"] == "in_progress" else {}))
        try:
            if full["status"] == "in_progress":
                full |= {"status": "cancelled", "completed_at": int(time.time())}
                self._save(tenant, full)
        finally:
            path.with_suffix(".cancel").unlink(missing_ok=True)
            held.release()
        return told(full)

    async def _look(self) -> None:
        """Do what other servers over this store wish, and go on with what they leave."""
        adopt_at = time.monotonic() + ADOPT_SEC
        while True:
            await asyncio.sleep(LOOK_SEC)
            try:
                for batch_id in list(self._tasks):
                    for wish in self._root.glob(f"*/{batch_id}.cancel"):
                        await self.cancel(Tenant(wish.parent.name), batch_id)
                if time.monotonic() >= adopt_at:
                    self.adopt()
                    adopt_at = time.monotonic() + ADOPT_SEC
            except Exception:  # a store on a file system with moods must not end the look
                self._service.log.exception("the look at batches failed; it goes on")

    def _unfinished(self, path: Path) -> bool:
        ends = json.loads(path.read_text(encoding="utf-8"))["status"] != "in_progress"
        if ends:
            self._ended.add(path)
        return not ends

    def _go(self, tenant: Tenant, path: Path) -> None:
        """Work on a batch, unless another server does."""
        held = claim(path.with_suffix(".lock"))
        if held is None:
            return
        if not self._unfinished(path):  # it was finished between the look and the claim
            held.release()
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        task = asyncio.get_running_loop().create_task(self._work(tenant, state))
        self._tasks[path.stem] = task

        def end(_: object) -> None:
            held.release()
            if self._tasks.get(path.stem) is task:
                del self._tasks[path.stem]
            error = None if task.cancelled() else task.exception()
            if error is not None:  # a full disk, say: the next look for batches goes on with it
                self._service.log.error("batch interrupted", exc_info=error, extra={"batch": path.stem})

        task.add_done_callback(end)

    def _give_up(self, path: Path, why: str) -> None:
        held = claim(path.with_suffix(".lock"))
        if held is not None:
            if self._unfinished(path):
                self._fail(path, json.loads(path.read_text(encoding="utf-8")), why)
            held.release()

    def _path(self, tenant: Tenant, batch_id: str) -> Path:
        return self._root / tenant.name / f"{batch_id}.json"

    async def _work(self, tenant: Tenant, state: State) -> None:
        """Answer every line that has no answer yet, some at a time, and note each answer at once."""
        path = self._path(tenant, state["id"])
        try:
            keys = ("input_file_id", "output_file_id", "error_file_id")
            source, good, bad = (self._file(tenant, state, key) for key in keys)
            made, failed = [await asyncio.to_thread(_answered, file) for file in (good, bad)]
            state["request_counts"] |= {"completed": len(made), "failed": len(failed)}
            places = asyncio.Semaphore(AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for line in lines(source):
                    if line["custom_id"] in made or line["custom_id"] in failed:
                        await asyncio.sleep(0)  # there may be thousands of them
                        continue
                    await places.acquire()
                    task = group.create_task(self._line(tenant, state, line, good, bad))
                    task.add_done_callback(lambda _: places.release())
            state |= {"status": "completed", "completed_at": int(time.time())}
            self._save(tenant, state)
            path.with_suffix(".cancel").unlink(missing_ok=True)  # a wish that came too late
        except* ApiError as faults:
            self._fail(path, state, str(faults.exceptions[0]))
        except* FileNotFoundError:
            self._fail(path, state, "one of its files was deleted while it ran; make a new batch")

    def _file(self, tenant: Tenant, state: State, key: str) -> Path:
        try:
            return self.files.path(tenant, state[key])
        except ApiError:
            raise ApiError(404, f"{key} = {shown(state[key])} was deleted before the batch was done; make a new batch",
                           param=key, code="file_not_found") from None

    async def _line(self, tenant: Tenant, state: State, line: dict[str, Any], good: Path, bad: Path) -> None:
        status, body = await self._answer(tenant, line)
        made = {
            "id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line["custom_id"],
            "response": {"status_code": status, "request_id": f"req-{uuid.uuid4().hex}", "body": body}, "error": None,
        }
        text = json.dumps(made, ensure_ascii=False).encode() + b"\n"
        async with self._writing[tenant.name]:  # two at once could not be counted
            await asyncio.to_thread(self._service.check_place, tenant, len(text))  # a full one ends the batch
            with open(good if status == 200 else bad, "ab", opener=_existing) as out:
                out.write(text)
        state["request_counts"]["completed" if status == 200 else "failed"] += 1
        self._save(tenant, state)

    async def _answer(self, tenant: Tenant, line: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of one line's answer, waiting for as long as there is no room."""
        while True:
            try:
                asked = parse(line)
                wanted = requests_of(self._service, tenant, asked, priority=BEHIND)
                return 200, await self._run(tenant, asked, wanted)
            except ApiError as error:
                if error.status not in (429, 503):
                    return error.status, error.body()
                await asyncio.sleep(float(error.headers.get("Retry-After", 1)))

    async def _run(self, tenant: Tenant, asked: Asked, wanted: list[Request]) -> dict[str, Any]:
        admission, tickets = self._service.submit(tenant, wanted)
        try:
            wording = wording_of(self._service, asked, [r.prompt for r in wanted])
            return await _whole(wording, tickets)
        finally:
            self._service.finish(admission, tickets)

    def _save(self, tenant: Tenant, state: State) -> None:
        _write(self._path(tenant, state["id"]), state)

    def _fail(self, path: Path, state: State, why: str) -> None:
        fault = {"code": "failed", "message": why, "param": None, "line": None}
        state |= {"status": "failed", "completed_at": int(time.time()), "errors": {"object": "list", "data": [fault]}}
        _write(path, state)


def _write(path: Path, state: State) -> None:
    """Write a state so that a reader, also one on another machine, finds the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_suffix(".writing")
    work.write_text(json.dumps(state), encoding="utf-8")
    work.replace(path)


async def _whole(wording: Wording, tickets: list[Ticket]) -> dict[str, Any]:
    made: list[list[Piece]] = [[] for _ in tickets]
    async with contextlib.aclosing(merged(tickets)) as pieces:
        async for number, piece in pieces:
            made[number].append(piece)
    answers = [[add_up(i, found) for i in range(t.request.n)] for t, found in zip(tickets, made, strict=True)]
    return wording.whole(answers, tickets)


def parse(line: dict[str, Any]) -> Asked:
    """Return the request in a batch's line.

    Raises:
        ApiError: 400.
    """
    kind = KINDS[line["url"]]
    try:
        asked = kind.model_validate(line["body"])
    except ValidationError as error:
        raise from_validation(error.errors(), list(kind.model_fields)) from None
    if asked.stream:
        raise ApiError(400, "stream = true is not for batches; leave it out", param="stream", code="invalid_value")
    return asked


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a checked file's lines, cut and read as `check_lines` does it."""
    with path.open("rb") as file:
        yield from (from_json(text) for text in file if text.strip())


def check_lines(path: Path, endpoint: str, longest: int = LONGEST_LINE) -> tuple[list[dict[str, Any]], int]:
    """Return what is wrong with a batch's file, and how many requests it holds.

    There are at most ten faults, whose messages name line, field and fix. No more than `MOST_LINES` lines are read.

    Args:
        path: of the file.
        endpoint: that each line must be for.
        longest: most bytes of a line.
    """
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    many = False
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            many = number > MOST_LINES
            if many or len(found) >= 10:
                break
            why = _line_fault(text, endpoint, seen, longest) if text.strip() else None
            if why:
                found.append({"code": "invalid_line", "message": why, "param": None, "line": number})
    if many or (not seen and not found):
        held = f"over {MOST_LINES:,} lines" if many else "no requests"
        why = f"the file has {held}; it must have 1 to {MOST_LINES:,}"
        found.append({"code": "invalid_file", "message": why, "param": None, "line": None})
    return found, len(seen)


def _line_fault(text: bytes, endpoint: str, seen: set[str], longest: int) -> str | None:
    if len(text) > longest:
        return f"the line has {len(text):,} bytes, at most {longest:,} are taken; shorten it"
    try:
        line = BatchLine.model_validate_json(text)
    except ValidationError as error:
        return str(from_validation(error.errors(), list(BatchLine.model_fields)))
    if line.url != endpoint:
        return f"url = {line.url!r} is not the batch's endpoint {endpoint!r}; make a batch for each"
    if line.custom_id in seen:
        return f"custom_id = {shown(line.custom_id)} is used twice; give each line its own"
    seen.add(line.custom_id)
    return None


def _existing(path: str, flags: int) -> int:
    """Open a file, but make none: one that was deleted must not come back without what belongs to it."""
    return os.open(path, flags & ~os.O_CREAT)


def _answered(path: Path) -> set[str]:
    """Return the ids that have an answer; half a line that a crash left is cut off."""
    whole, keep = set(), 0
    with path.open("rb+") as file:
        for text in file:
            if not text.endswith(b"\n"):
                break
            keep += len(text)
            whole.add(json.loads(text)["custom_id"])
        file.truncate(keep)
    return whole


def told(state: State) -> State:
    """Return a state without what is the server's own."""
    return {key: value for key, value in state.items() if key != "key_id"}
