"""Answers as they are made: pieces of many tickets in one sequence, server-sent events, and the client that leaves."""

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from foreword.serve.faults import ApiError
from foreword.serve.request import Answer, Piece, Ticket, add_up

Asgi = Callable[[], Awaitable[MutableMapping[str, Any]]]
DONE = b"data: [DONE]\n\n"


class ClientLeft(Exception):
    """The client closed the connection; there is nobody to answer."""


async def merged(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Piece]]:
    """Yield (ticket's number, piece) of all tickets as the engine makes them, until all have ended."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece]]()

    def hand_over(number: int, piece: Piece) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(queue.put_nowait, (number, piece))

    listeners = [functools.partial(hand_over, number) for number in range(len(tickets))]
    for ticket, listener in zip(tickets, listeners, strict=True):
        ticket.listen(listener)
    try:
        still = sum(ticket.request.n for ticket in tickets)
        while still:
            number, piece = await queue.get()
            still -= piece.finish_reason is not None
            yield number, piece
    finally:
        for ticket, listener in zip(tickets, listeners, strict=True):
            ticket.unlisten(listener)


async def answers(request: HttpRequest, tickets: Sequence[Ticket]) -> list[list[Answer]]:
    """Return all answers of all tickets once they have ended.

    Raises:
        ClientLeft: the client went away first.
    """
    made: list[list[Piece]] = [[] for _ in tickets]

    async def wait() -> None:
        async for number, piece in merged(tickets):
            made[number].append(piece)

    if not await _unless_gone(wait(), request.receive):
        raise ClientLeft
    return [[add_up(i, found) for i in range(t.request.n)] for t, found in zip(tickets, made, strict=True)]


def event(body: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """A response of server-sent events. `on_end` runs whatever happens; it is told whether the client had left.

    The source stops at once when the client leaves, and when it takes nothing for `stall_sec`. The status waits for
    the source's first event, so what fails before it has a status of its own.
    """

    media_type = "text/event-stream"

    def __init__(
        self, source: AsyncIterator[bytes], *, stall_sec: float, on_end: Callable[[bool], None]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._source, self._stall_sec, self._on_end = source, stall_sec, on_end

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send everything, or stop when nobody listens.

        Raises:
            ApiError: the source failed before its first event; nothing was sent.
        """
        left = True
        try:
            left = not await _unless_gone(self._send(send), receive)
        except (OSError, TimeoutError):
            left = True
        except ApiError:
            left = False
            raise
        finally:
            self._on_end(left)

    async def _send(self, send: Any) -> None:
        begun = False
        async with contextlib.aclosing(self._safely()) as source:
            async for body in source:
                if not begun:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    begun = True
                async with asyncio.timeout(self._stall_sec):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        async with asyncio.timeout(self._stall_sec):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _safely(self) -> AsyncIterator[bytes]:
        """The source; what goes wrong after the first event becomes one, as the status is sent already."""
        begun = False
        try:
            async for body in self._source:
                begun = True
                yield body
        except ApiError as error:
            if not begun:
                raise
            yield event(error.body())
            yield DONE


async def _unless_gone(work: Awaitable[None], receive: Asgi) -> bool:
    """Run `work` to its end and return True, or stop it when the client leaves and return False."""
    worker, leaver = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        done, _ = await asyncio.wait({worker, leaver}, return_when=asyncio.FIRST_COMPLETED)
        if worker in done:
            worker.result()
        return worker in done
    finally:
        for task in (worker, leaver):
            task.cancel()
        await asyncio.gather(worker, leaver, return_exceptions=True)


async def _gone(receive: Asgi) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
