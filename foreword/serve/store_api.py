"""`/v1/forewords`: put forewords into the store, look at them and take them out, while everything else runs."""

import asyncio
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request as HttpRequest

from foreword.artifact import HubAccess, load_prompt
from foreword.artifact.directory import FILES, TRAINING
from foreword.artifact.format import content_digest
from foreword.artifact.hub import fetch_prompt
from foreword.errors import ForewordError, nearest
from foreword.serve.catalog import Entry, check_name, tree_bytes
from foreword.serve.faults import ApiError, bad_field, from_validation, shown
from foreword.serve.openai_api import Who
from foreword.serve.protocol import HubForeword
from foreword.serve.replies import Deleted, ForewordList, ForewordReply, faults
from foreword.serve.service import Service
from foreword.serve.tenants import LOCAL, Tenant

PAGE = 100
UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "required": ["name", "files"], "properties": {
                "name": {"type": "string"},
                "files": {"type": "array", "items": {"type": "string", "format": "binary"}}}}},
            "application/json": {"schema": HubForeword.model_json_schema()},
        },
    }
}


def store_routes(service: Service) -> APIRouter:
    """Return the routes of the store."""
    router = APIRouter()

    @router.get("/v1/forewords", responses=faults(), response_model=ForewordList)
    def listing(tenant: Who, limit: Annotated[int, Query(ge=1, le=1000)] = PAGE, after: str | None = None) -> Any:
        """List forewords by name, a page at a time."""
        page, more = service.catalog.page(tenant, after, limit)
        return {"object": "list", "data": [describe(service, tenant, entry) for entry in page], "has_more": more}

    @router.get("/v1/forewords/{name}", responses=faults(404), response_model=ForewordReply)
    def one(tenant: Who, name: str) -> Any:
        """Tell of one foreword."""
        return describe(service, tenant, service.catalog.resolve(tenant, name))

    @router.post("/v1/forewords", status_code=201, responses=faults(403, 404, 409, 422), openapi_extra=UPLOAD_BODY,
                 response_model=ForewordReply)
    async def store(request: HttpRequest, tenant: Who) -> Any:
        """Store a foreword: its files as a form (`name`, `files`), or `name` and `source` of the hub as JSON.

        The same name again is a new version: rows that run keep theirs, requests from now on get this one.
        """
        work = service.catalog.workplace(tenant)
        try:
            name = await _arrive(service, tenant, request, work)
            return await asyncio.to_thread(_take_in, service, tenant, name, work)
        finally:
            await asyncio.to_thread(shutil.rmtree, work, True)

    @router.delete("/v1/forewords/{name}", responses=faults(404), response_model=Deleted)
    def delete(tenant: Who, name: str) -> Any:
        """Take a foreword of the key's own out of the store and out of memory."""
        service.catalog.remove(tenant, name)
        service.forget([key for key, e in service.known().items() if (e.owner, e.name) != (tenant.name, name)])
        service.log.info("foreword deleted", extra={"tenant": tenant.name, "foreword": name})
        return {"id": name, "object": "foreword", "deleted": True}

    return router


async def _arrive(service: Service, tenant: Tenant, request: HttpRequest, work: Path) -> str:
    """Bring the files of a request into `work` and return the name they are for."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=len(FILES), max_fields=1) as form:
            return await _from_form(service, form, work)
    if kind == "application/json":
        return await _from_hub(service, request, work)
    raise ApiError(400, f"Content-Type {shown(kind)} must be multipart/form-data (files) or application/json (the hub)",
                   code="bad_content_type")


async def _from_form(service: Service, form: FormData, work: Path) -> str:
    name = form.get("name")
    if not isinstance(name, str):
        raise ApiError(400, "field 'name' is missing; add name=... to the form", param="name", code="missing_field")
    check_name(name, service.name)
    strange = sorted(set(form.keys()) - {"name", "files"})
    if strange:
        raise ApiError(400, f"field {shown(strange[0])} is unknown{nearest(strange[0], ('name', 'files'))}",
                       param=strange[0][:64], code="unknown_field")
    for file in form.getlist("files"):
        if not isinstance(file, UploadFile) or file.filename not in FILES:
            given = getattr(file, "filename", file)
            text = f"files: {shown(given)} is no part of a foreword; its files are {', '.join(FILES)}"
            raise bad_field("files", text)
        if file.filename != TRAINING:  # what training goes on from is not needed to serve
            await asyncio.to_thread(_copy, file, work / file.filename)
    if not any(work.iterdir()):
        raise ApiError(400, "field 'files' is missing; add the files of the foreword's directory", param="files",
                       code="missing_field")
    return name


def _copy(file: UploadFile, path: Path) -> None:
    with path.open("wb") as out:
        shutil.copyfileobj(file.file, out)


async def _from_hub(service: Service, request: HttpRequest, work: Path) -> str:
    try:
        asked = HubForeword.model_validate_json(await request.body())
    except ValueError as error:
        errors = getattr(error, "errors", list)()
        if not errors:
            raise ApiError(400, "the body is not JSON", code="bad_json") from None
        raise from_validation(errors, list(HubForeword.model_fields)) from None
    check_name(asked.name, service.name)
    if not service.hub_allows(asked.source):
        raise ApiError(403, f"source = {shown(asked.source)} is not on the server's list of hub ids; ask who runs it",
                       param="source", code="source_not_allowed")
    try:
        found = await asyncio.to_thread(fetch_prompt, asked.source, HubAccess(revision=asked.revision))
    except ForewordError as error:
        raise ApiError(422, service.hide(str(error)), param="source", code="fetch_failed") from None
    for file in FILES:
        if (found / file).is_file() and file != TRAINING:
            await asyncio.to_thread(shutil.copyfile, found / file, work / file)
    return asked.name


def _take_in(service: Service, tenant: Tenant, name: str, work: Path) -> dict[str, Any]:
    """Check what arrived, make it the foreword's current version, and return its description."""
    version = check_files(service, work)
    with service.storing(tenant, tree_bytes(work)):
        _check_count(service, tenant, name)
        entry = service.catalog.install(tenant, name, _renamed(work), version)
    service.know(entry)
    service.log.info("foreword stored", extra={"tenant": tenant.name, "foreword": name, "version": version})
    return describe(service, tenant, entry)


def _renamed(work: Path) -> Path:
    """Give the directory another hidden name, so that the clean-up afterwards finds nothing to remove."""
    return work.rename(work.with_name(work.name.replace(".incoming.", ".checked.")))


def check_files(service: Service, work: Path) -> str:
    """Return the version (12 digits of the content digest) of an artefact whose every part was found sound.

    The engine's own checks come first: manifest, sizes and shapes by the header alone; then the numbers.

    Raises:
        ApiError: 422, it is damaged, too large, or another backbone's.
    """
    try:
        prompt = load_prompt(work, service.backbone)
        if prompt.length > service.wall.virtual_tokens:
            limit = f"length = {prompt.length} virtual tokens, the server takes {service.wall.virtual_tokens}"
            raise ApiError(422, f"{limit}; store a shorter foreword", param="files", code="too_large")
        return content_digest(prompt)[:12]
    except ApiError:
        raise
    except ForewordError as error:
        text = service.hide(str(error)).replace(f"{work.name}/", "").replace(work.name, "the upload")
        raise ApiError(422, text, param="files", code="invalid_foreword") from None


def _check_count(service: Service, tenant: Tenant, name: str) -> None:
    most = tenant.quota.forewords
    if most is None:
        return
    count, own = service.catalog.used(tenant)[0], service.catalog.own(tenant, name)
    if count + (not own.exists()) > most:
        raise ApiError(403, f"{count} forewords are stored, your key allows {most}; delete one first",
                       code="quota_exceeded")


def describe(service: Service, tenant: Tenant, entry: Entry) -> dict[str, Any]:
    """Return a foreword as the wire tells of it, with all its rows for an operator and the tenant's own for others.

    One that cannot be read has state `failed`.
    """
    info = service.info(entry)
    facts: dict[str, Any] = {"kind": None, "length": None, "num_bytes": None, "text_format": None, "state": "failed",
                             "pinned": False, "rows": 0}
    if info is not None:
        facts = {key: getattr(info, key) for key in facts}
        facts["rows"] = info.rows if tenant.operator else service.own_rows(tenant)[entry.id]
    owner = "operator" if entry.owner == LOCAL else "you"
    return {"id": entry.name, "object": "foreword", "version": entry.version, "owned_by": owner,
            "created": entry.created, **facts}


def sweep(roots: Sequence[Path], age_sec: float = 0.0) -> int:
    """Remove what uploads that a killed process left behind, and return how many there were.

    Args:
        roots: the directories of the store that uploads arrive in.
        age_sec: what was touched within this time is spared, as another server may be at work on it.
    """
    left = [path for root in roots for path in root.glob(".*") if path.name.startswith((".incoming.", ".checked."))
            or path.name.endswith(".gone")]
    old = [path for path in left if age_sec == 0 or _age_sec(path) > age_sec]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)
    return len(old)


def _age_sec(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:  # another server has just removed it
        return 0.0
