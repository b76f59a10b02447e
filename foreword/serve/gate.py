"""What every request passes first: who asks, how much it sends and how slowly; and what is written down of it."""

import asyncio
import json
import time
import uuid
from typing import Any

from foreword.serve.faults import ApiError
from foreword.serve.service import Service
from foreword.serve.tracing import Tracer

UPLOADS = ("/v1/forewords", "/v1/files")
OPEN = ("/health", "/ready", "/", "/openapi.json")
"""Paths that need no key, besides the playground's own files."""


class Gate:
    """Pure ASGI middleware around the application: it never holds a body or a stream back.

    The key is checked before the first byte of a body is read.
    """

    def __init__(self, app: Any, service: Service, tracer: Tracer) -> None:
        self._app, self._service, self._tracer = app, service, tracer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request; lifespan events pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = Seen(scope, self._service)
        scope.setdefault("state", {})["seen"] = seen
        with self._tracer.span(scope, seen) as span:
            try:
                self._admit(scope, seen)
                body = Body(receive, self._limit(scope), self._service.wall.receive_sec)
                await self._app(scope, body.receive, seen.sending(send))
            except ApiError as error:
                if seen.status is None:
                    await refuse(seen.sending(send), error)
            except Exception as error:
                self._service.log.error("crash", exc_info=error, extra={"request_id": seen.id})
                if seen.status is not None:
                    raise  # part of the answer is out already: the server closes the connection
                await refuse(seen.sending(send), _crashed(seen.id))
            finally:
                seen.close()
                span.end(seen)

    def _admit(self, scope: Any, seen: "Seen") -> None:
        path = scope["path"]
        if path in OPEN or path.startswith("/playground/"):
            return
        headers = dict(scope["headers"])
        seen.tenant = self._service.keyring.who(headers.get(b"authorization", b"").decode("latin-1"))
        scope["state"]["tenant"] = seen.tenant
        length, limit = headers.get(b"content-length", b""), self._limit(scope)
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)

    def _limit(self, scope: Any) -> int:
        wall = self._service.wall
        return wall.upload_bytes if scope["path"] in UPLOADS else wall.body_bytes


class Body:
    """A request's body as it arrives, counted and timed."""

    def __init__(self, receive: Any, limit: int, wait_sec: float) -> None:
        self._receive, self._left, self._limit, self._wait_sec = receive, limit, limit, wait_sec
        self._whole = False

    async def receive(self) -> Any:
        """Return the next ASGI message.

        Raises:
            ApiError: 408 too slow, 413 too much.
        """
        if self._whole:
            return await self._receive()  # from here on it can only say that the client has left
        try:
            async with asyncio.timeout(self._wait_sec):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"nothing of the body arrived for {self._wait_sec:g} s; send it faster",
                           code="body_timeout", headers={"Connection": "close"}) from None
        self._left -= len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._left < 0:
            raise _too_large(self._limit)
        return message


class Seen:
    """What is written down of a request: one line of log, a count and a time."""

    def __init__(self, scope: Any, service: Service) -> None:
        self._scope, self._service, self._begun = scope, service, time.monotonic()
        given = scope.get("state", {}).get("request_id")  # by what stands before us, which has checked it
        self.id = given or f"req-{uuid.uuid4().hex}"
        self.tenant: Any = None
        self.status: int | None = None
        self.facts: dict[str, Any] = {}

    @property
    def route(self) -> str:
        """The route's template, so that names do not become labels."""
        return getattr(self._scope.get("route"), "path", "unknown")

    @property
    def method(self) -> str:
        """GET, POST and so on."""
        return self._scope["method"]

    def sending(self, send: Any) -> Any:
        """Return a `send` that notes the status and adds the request's id to the headers."""

        async def noted(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
            await send(message)

        return noted

    def close(self) -> None:
        """Write it down."""
        seconds, metrics = time.monotonic() - self._begun, self._service.metrics
        status = self.status or 499
        metrics.requests.labels(self.route, str(status)).inc()
        metrics.seconds.labels(self.route).observe(seconds)
        who = {"tenant": self.tenant.name, "key": self.tenant.key_id} if self.tenant else {}
        self._service.log.info("request", extra={
            "request_id": self.id, "method": self.method, "route": self.route, "status": status,
            "ms": round(seconds * 1000, 1), **who, **self.facts,
        })


async def refuse(send: Any, error: ApiError) -> None:
    """Send an error as the whole answer."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    await send({"type": "http.response.start", "status": error.status,
                "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()]})
    await send({"type": "http.response.body", "body": body})


def _crashed(request_id: str) -> ApiError:
    return ApiError(500, f"the server failed; tell who runs it the request id {request_id}", code="internal_error")


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is over {limit:,} bytes, the most that is taken here; send less",
                    code="too_large", headers={"Connection": "close"})
