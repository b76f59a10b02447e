"""The playground: a page at `/` where several forewords answer one text side by side, from one batch."""

import contextlib
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from foreword.serve.answers import check_end
from foreword.serve.ask import requests_of
from foreword.serve.faults import ApiError, unknown_path
from foreword.serve.openai_api import Who, settle
from foreword.serve.protocol import CompareRequest, CompletionRequest
from foreword.serve.replies import faults
from foreword.serve.request import Piece
from foreword.serve.service import Service
from foreword.serve.stream import DONE, EventStream, event, merged

KINDS = {"index.html": "text/html", "style.css": "text/css", "app.js": "text/javascript"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cache-Control": "no-cache"}


def playground_routes(service: Service) -> APIRouter:
    """Return the page, its files, and the stream that it reads."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    def page() -> Response:
        """The page itself; it holds nothing secret, so it needs no key."""
        return _file("index.html")

    @router.get("/playground/{name}", include_in_schema=False)
    def part(name: str) -> Response:
        """The page's script and style."""
        if name not in KINDS:
            raise unknown_path("/playground/" + name)
        return _file(name)

    @router.post("/v1/compare", response_model=None, responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}, **faults(404)})
    async def compare(request: HttpRequest, tenant: Who, asked: CompareRequest) -> Response:
        """Let several models answer one text in one batch; events tell `model`, `text`, `tokens`, `finish_reason`."""
        return _compare(service, request, tenant, asked)

    return router


def _compare(service: Service, request: HttpRequest, tenant: Any, asked: CompareRequest) -> EventStream:
    fields = {"prompt": asked.prompt, "max_tokens": asked.max_tokens, "temperature": asked.temperature,
              "seed": asked.seed}
    wanted = [r for name in asked.models for r in requests_of(service, tenant, CompletionRequest(model=name, **fields))]
    admission, tickets = service.submit(tenant, wanted)

    async def source() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(merged(tickets)) as pieces:
            async for number, piece in pieces:
                yield event({"model": asked.models[number], **_told(service, piece)})
        yield DONE

    return EventStream(source(), stall_sec=service.wall.stall_sec,
                       on_end=lambda left: settle(service, request, admission, tickets))


def _told(service: Service, piece: Piece) -> dict[str, Any]:
    """Return a piece as the page reads it; an answer that fails is its own event, and the others go on."""
    made = {"text": piece.text, "tokens": len(piece.token_ids), "finish_reason": piece.finish_reason}
    try:
        if piece.finish_reason is not None:
            check_end(piece)
    except ApiError as error:
        made["error"] = service.hide(str(error))
    return made


def _file(name: str) -> Response:
    content = resources.files("foreword.serve.playground").joinpath(name).read_bytes()
    return Response(content, media_type=f"{KINDS[name]}; charset=utf-8", headers=HEADERS)
