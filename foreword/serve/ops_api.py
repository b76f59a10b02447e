"""`/health`, `/ready`, `/metrics`, `/v1/status`: what an orchestrator, Prometheus and the playground look at."""

import contextlib
from collections import Counter
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from foreword.errors import ForewordError
from foreword.serve.faults import ApiError
from foreword.serve.openai_api import Who
from foreword.serve.replies import faults
from foreword.serve.service import Service
from foreword.serve.tenants import LOCAL, Tenant

SHOWN = 256  # forewords in a status: the latest used


def ops_routes(service: Service) -> APIRouter:
    """Return the routes for those who run the server."""
    router = APIRouter()

    @router.get("/health", response_model=dict[str, str], responses=faults())
    def health() -> Any:
        """Tell that the process and its engine live. 500 calls for a restart."""
        state = service.engine.stats().state
        if state not in ("running", "draining"):
            raise ApiError(500, f"the engine is {state}; restart the server", code="engine_" + state)
        return {"status": "ok"}

    @router.get("/ready", response_model=dict[str, str], responses=faults())
    def ready() -> Any:
        """Tell that new requests are taken; 503 while draining."""
        if service.draining.is_set() or service.engine.stats().state != "running":
            raise ApiError(503, "the server is going away; send requests elsewhere", code="draining")
        return {"status": "ready"}

    @router.get("/metrics", response_model=None, responses={200: {"content": {"text/plain": {}}}, **faults(403)})
    def metrics(tenant: Who) -> Response:
        """Figures for Prometheus, for an operator's key."""
        if not tenant.operator:
            raise ApiError(403, "these figures need an operator's key; ask who runs the server", code="not_operator")
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/v1/status", response_model=dict[str, Any], responses=faults())
    def status(tenant: Who) -> Any:
        """The engine and the pool now: all of it for an operator, their own part for others."""
        return snapshot(service, tenant)

    return router


def snapshot(service: Service, tenant: Tenant) -> dict[str, Any]:
    """Return what `/v1/status` tells. A tenant's own rows and forewords have names, the rest is not told at all.

    Rows are the tenant's own also where many use the same foreword, or none.
    """
    engine, pool, known = service.engine.stats(), service.pool.stats(), service.known()
    rows: Counter[str] = Counter()
    for name, count in ((engine.rows_by_foreword or {}) if tenant.operator else service.own_rows(tenant)).items():
        label = service.name if name == "" else _label(tenant, known.get(name))
        if label is not None:
            rows[label] += count
    made: dict[str, Any] = {
        "model": service.name, "state": "draining" if service.draining.is_set() else engine.state,
        "rows_by_foreword": dict(rows), "waiting_or_running": service.limits.rows_of(tenant),
        "pool": {"resident": _resident(service, tenant)}, "slots": service.slots,
    }
    if tenant.operator:
        names = ("running_rows", "queued_rows", "steps", "made_tokens", "prompt_tokens", "tok_per_sec", "step_sec",
                 "cache_bytes", "cache_limit_bytes", "prefix_bytes")
        made["engine"] = {name: getattr(engine, name) for name in names}
        names = ("names", "resident_bytes", "budget_bytes", "hits", "misses", "evictions")
        made["pool"] |= {"count": pool.resident, **{name: getattr(pool, name) for name in names}}
    return made


def _label(tenant: Tenant, entry: Any) -> str | None:
    """Return what a tenant calls a foreword; None if it is not its business."""
    if entry is None:
        return None
    if entry.owner == tenant.name or (entry.owner == LOCAL and tenant.may_use_shared(entry.name)):
        return entry.name
    return f"{entry.owner}/{entry.name}" if tenant.operator else None


def _resident(service: Service, tenant: Tenant) -> list[dict[str, Any]]:
    found, own = [], service.own_rows(tenant)
    latest = list(service.known().values())[-SHOWN:]  # the store may hold thousands, and this is asked often
    for entry in latest:
        label = _label(tenant, entry)
        if label is None:
            continue
        with contextlib.suppress(ForewordError):  # it left the pool, or cannot be read
            info = service.pool.info(entry.id)
            if info.state == "resident":
                rows = info.rows if tenant.operator else own[entry.id]
                found.append({"name": label, "bytes": info.num_bytes, "pinned": info.pinned, "rows": rows})
    return sorted(found, key=lambda row: (-row["rows"], row["name"]))
