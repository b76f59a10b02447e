"""The HTTP application: routes, the gate before them, and every fault in OpenAI's error format."""

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

import foreword
from foreword.errors import ForewordError
from foreword.serve.batch_api import batch_routes
from foreword.serve.batches import Batches
from foreword.serve.faults import ApiError, from_validation, shown, unknown_path
from foreword.serve.gate import Gate
from foreword.serve.openai_api import openai_routes
from foreword.serve.ops_api import ops_routes
from foreword.serve.playground import playground_routes
from foreword.serve.service import Service
from foreword.serve.store_api import store_routes
from foreword.serve.tracing import Tracer

Closer = Callable[[], None]


def make_app(service: Service, tracer: Tracer | None = None, on_end: Closer = lambda: None) -> FastAPI:
    """Return the ASGI application of a service whose engine runs; `on_end` is called when the server has stopped."""
    batches = Batches(service)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        batches.start()
        yield
        await batches.stop()
        on_end()

    app = FastAPI(
        title="Foreword", version=foreword.__version__, lifespan=life, docs_url=None, redoc_url=None,
        description="Many forewords on one frozen model. OpenAI's completions and chats; `model` names the foreword.",
    )
    for routes in (openai_routes, store_routes, ops_routes, playground_routes):
        app.include_router(routes(service))
    app.include_router(batch_routes(service, batches))
    _answer_faults(app, service)
    app.add_middleware(Gate, service=service, tracer=tracer or Tracer())
    _describe(app)
    return app


def _answer_faults(app: FastAPI, service: Service) -> None:
    @app.exception_handler(RequestValidationError)
    def invalid(request: HttpRequest, error: RequestValidationError) -> Response:
        return _reply(from_validation(error.errors(), _fields(request)))

    @app.exception_handler(ForewordError)
    def fault(request: HttpRequest, error: ForewordError) -> Response:
        return _reply(service.answer_to(error))

    @app.exception_handler(HTTPException)
    def http(request: HttpRequest, error: HTTPException) -> Response:
        return _reply(_from_starlette(request, error))

    @app.exception_handler(ClientDisconnect)
    def left(request: HttpRequest, error: ClientDisconnect) -> Response:
        return Response(status_code=499)


def _from_starlette(request: HttpRequest, error: HTTPException) -> ApiError:
    headers: Mapping[str, str] = error.headers or {}
    if isinstance(error.__cause__, ApiError):  # FastAPI wraps what stops it from reading a body
        return error.__cause__
    if error.status_code == 404:
        return unknown_path(request.url.path)
    if error.status_code == 405:
        allowed = headers.get("allow") or headers.get("Allow", "")
        return ApiError(405, f"method {shown(request.method)} is not for {request.url.path}; use {allowed}",
                        code="method_not_allowed", headers=headers)
    return ApiError(error.status_code, f"the body cannot be read: {error.detail}", code="bad_body", headers=headers)


def _reply(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers=error.headers)


def _fields(request: HttpRequest) -> list[str]:
    """Return the names that the body (or the query) of a request's route may have."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if dependant is None:
        return []
    names = [p.name for p in dependant.query_params]
    for parameter in dependant.body_params:
        names += list(getattr(parameter.field_info.annotation, "model_fields", {}))
    return names


def _describe(app: FastAPI) -> None:
    """Make the OpenAPI document tell the truth: invalid input is a 400 here, and a key is sent as a bearer token."""
    make: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = make()
            for methods in document["paths"].values():
                for operation in methods.values():
                    if "HTTPValidationError" in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
            components = document["components"]
            for name in ("HTTPValidationError", "ValidationError"):
                components["schemas"].pop(name, None)
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}, {}]
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
