"""`/v1/models`, `/v1/completions` and `/v1/chat/completions`: OpenAI's own routes."""

import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from foreword.serve.answers import Wording, is_chat, usage
from foreword.serve.ask import Asked, requests_of
from foreword.serve.faults import ApiError
from foreword.serve.limits import Admission
from foreword.serve.protocol import ChatRequest, CompletionRequest
from foreword.serve.replies import ChatReply, CompletionReply, ModelList, ModelReply, faults
from foreword.serve.request import Ticket
from foreword.serve.service import Service
from foreword.serve.stream import DONE, ClientLeft, EventStream, answers, event, merged
from foreword.serve.tenants import LOCAL, Tenant

SHOWN = 20_000  # models in one list


def tenant_of(request: HttpRequest) -> Tenant:
    """Return who is asking, as the gate found out."""
    return request.state.tenant


Who = Annotated[Tenant, Depends(tenant_of)]


def openai_routes(service: Service) -> APIRouter:
    """Return OpenAI's routes."""
    router = APIRouter()

    @router.get("/v1/models", responses=faults(), response_model=ModelList)
    def models(tenant: Who, limit: Annotated[int, Query(ge=1, le=SHOWN)] = SHOWN) -> Any:
        """List the plain backbone and every foreword that the key may use."""
        found = list(service.catalog.listed(tenant).items())[: limit - 1]
        return {"object": "list", "data": [plain_model(service), *(model_of(name, *facts) for name, facts in found)]}

    @router.get("/v1/models/{name}", responses=faults(404), response_model=ModelReply)
    def model(tenant: Who, name: str) -> Any:
        """Tell of one model."""
        if name == service.name:
            return plain_model(service)
        entry = service.catalog.resolve(tenant, name)
        return model_of(entry.name, entry.owner, entry.created)

    @router.post("/v1/completions", responses=faults(404, 504), response_model=CompletionReply)
    async def completions(request: HttpRequest, tenant: Who, asked: CompletionRequest) -> Response:
        """Continue texts, each choice a row of the one running batch."""
        return await answer(service, request, tenant, asked)

    @router.post("/v1/chat/completions", responses=faults(404, 504), response_model=ChatReply)
    async def chat(request: HttpRequest, tenant: Who, asked: ChatRequest) -> Response:
        """Answer a chat."""
        return await answer(service, request, tenant, asked)

    return router


async def answer(service: Service, request: HttpRequest, tenant: Tenant, asked: Asked) -> Response:
    """Return the answer to a completion or a chat, streamed or whole."""
    wanted = requests_of(service, tenant, asked)
    admission, tickets = service.submit(tenant, wanted)
    request.state.seen.facts["model"] = asked.model
    wording = wording_of(service, asked, [r.prompt for r in wanted])
    if asked.stream:
        return _stream(service, request, wording, admission, tickets)
    try:
        made = await answers(request, tickets)
        return JSONResponse(wording.whole(made, tickets))
    except ClientLeft:
        service.metrics.left.inc()
        return Response(status_code=499)
    except ApiError as error:
        raise _hidden(service, error) from None
    finally:
        settle(service, request, admission, tickets)


def wording_of(service: Service, asked: Asked, prompts: Sequence[Any]) -> Wording:
    """Return the format of the answers to a request."""
    echoes = []
    if isinstance(asked, CompletionRequest) and asked.echo:
        decode = service.backbone.tokenizer.decode
        echoes = [prompt if isinstance(prompt, str) else decode(list(prompt)) for prompt in prompts]
    return Wording(service.backbone, asked.model, int(time.time()), is_chat(asked), asked.n or 1, echoes,
                   asked.include_usage)


def settle(service: Service, request: HttpRequest, admission: Admission, tickets: Sequence[Ticket]) -> None:
    """End a request: cancel what still runs, give back what was reserved, note the counts for the log."""
    service.finish(admission, tickets)
    counts = usage(tickets)
    request.state.seen.facts |= {key: counts[key] for key in ("prompt_tokens", "completion_tokens")}


def _stream(
    service: Service, request: HttpRequest, wording: Wording, admission: Admission, tickets: Sequence[Ticket]
) -> EventStream:
    async def source() -> AsyncIterator[bytes]:
        try:
            async with contextlib.aclosing(merged(tickets)) as pieces:
                async for number, piece in pieces:
                    for chunk in wording.chunk(number, piece):
                        yield event(chunk)
        except ApiError as error:
            raise _hidden(service, error) from None
        last = wording.last(tickets)
        if last is not None:
            yield event(last)
        yield DONE

    def on_end(left: bool) -> None:
        if left:
            service.metrics.left.inc()
        settle(service, request, admission, tickets)

    return EventStream(source(), stall_sec=service.wall.stall_sec, on_end=on_end)


def _hidden(service: Service, error: ApiError) -> ApiError:
    error.args = (service.hide(str(error)),)
    return error


def plain_model(service: Service) -> dict[str, Any]:
    """Return the backbone itself as a model."""
    return {"id": service.name, "object": "model", "created": service.started, "owned_by": "backbone"}


def model_of(name: str, owner: str, created: int) -> dict[str, Any]:
    """Return a foreword as a model. The owner is `you` or the operator: no tenant's name leaves the server."""
    whose = "operator" if owner == LOCAL else "you"
    return {"id": name, "object": "model", "created": created, "owned_by": whose}
