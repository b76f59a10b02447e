"""`/v1/files` and `/v1/batches`: batch files in and out, as OpenAI's client sends them."""

import asyncio
import shutil
from typing import Any

from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response

from foreword.serve.batches import Batches
from foreword.serve.faults import ApiError, shown
from foreword.serve.files import Files
from foreword.serve.openai_api import Who
from foreword.serve.protocol import BatchRequest
from foreword.serve.replies import BatchReply, Deleted, FileReply, faults
from foreword.serve.service import Service
from foreword.serve.tenants import Tenant

FILE_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": {
    "type": "object", "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"}, "purpose": {"type": "string", "enum": ["batch"]}}}}}}}


def batch_routes(service: Service, batches: Batches) -> APIRouter:
    """Return the routes of files and batches."""
    router = APIRouter()
    _file_routes(router, service, batches.files)

    @router.post("/v1/batches", responses=faults(403, 404), response_model=BatchReply)
    async def create(tenant: Who, asked: BatchRequest) -> Any:
        """Answer every line of an uploaded file, behind the requests that somebody waits for."""
        if service.draining.is_set():
            raise ApiError(503, "the server is going away; try again", code="draining", headers={"Retry-After": "5"})
        return await batches.create(tenant, asked)

    @router.get("/v1/batches", responses=faults(), response_model=dict[str, Any])
    def listing(tenant: Who) -> Any:
        """List the key's batches, the latest first."""
        return {"object": "list", "data": batches.all(tenant), "has_more": False}

    @router.get("/v1/batches/{batch_id}", responses=faults(404), response_model=BatchReply)
    def one(tenant: Who, batch_id: str) -> Any:
        """Tell how far a batch is."""
        return batches.state(tenant, batch_id)

    @router.post("/v1/batches/{batch_id}/cancel", responses=faults(404), response_model=BatchReply)
    async def cancel(tenant: Who, batch_id: str) -> Any:
        """Stop a batch; the answers that are there stay."""
        return await batches.cancel(tenant, batch_id)

    return router


def _file_routes(router: APIRouter, service: Service, files: Files) -> None:
    @router.post("/v1/files", responses=faults(403), response_model=FileReply, openapi_extra=FILE_BODY)
    async def upload(request: HttpRequest, tenant: Who) -> Any:
        """Upload a batch's input: JSON lines."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise ApiError(400, f"Content-Type {shown(kind)} must be multipart/form-data", code="bad_content_type")
        async with request.form(max_files=1, max_fields=8) as form:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile) or not isinstance(purpose, str):
                missing = "file" if not isinstance(file, UploadFile) else "purpose"
                text = f"field {missing!r} is missing; it is required"
                raise ApiError(400, text, param=missing, code="missing_field")
            return await asyncio.to_thread(_keep, service, files, tenant, file, purpose)

    @router.get("/v1/files", responses=faults(), response_model=dict[str, Any])
    def listing(tenant: Who) -> Any:
        """List the key's files."""
        return {"object": "list", "data": list(files.all(tenant)), "has_more": False}

    @router.get("/v1/files/{file_id}", responses=faults(404), response_model=FileReply)
    def one(tenant: Who, file_id: str) -> Any:
        """Tell of a file."""
        return files.info(tenant, file_id)

    @router.get("/v1/files/{file_id}/content", response_model=None, responses={
        200: {"content": {"application/jsonl": {}}}, **faults(404)})
    def content(tenant: Who, file_id: str) -> Response:
        """Return a file's content."""
        return FileResponse(files.path(tenant, file_id), media_type="application/jsonl")

    @router.delete("/v1/files/{file_id}", responses=faults(404), response_model=Deleted)
    def delete(tenant: Who, file_id: str) -> Any:
        """Delete a file."""
        files.remove(tenant, file_id)
        return {"id": file_id, "object": "file", "deleted": True}


def _keep(service: Service, files: Files, tenant: Tenant, file: UploadFile, purpose: str) -> dict[str, Any]:
    """Put an upload among a tenant's files, if its quota has place for it, and return what is told of it."""
    with service.storing(tenant, file.size or 0):
        file_id, path = files.make(tenant, file.filename or "", purpose)
        with path.open("wb") as out:
            shutil.copyfileobj(file.file, out)
    return files.info(tenant, file_id)
