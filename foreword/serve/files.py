"""Files on the wire: what batches read and write, each tenant's apart, on the disk of the store."""

import contextlib
import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foreword.errors import nearest
from foreword.serve.catalog import tree_bytes
from foreword.serve.faults import ApiError, shown
from foreword.serve.tenants import Tenant

FOLDER = ".files"
FILE_ID = re.compile(r"file-[0-9a-f]{32}")
PURPOSES = ("batch", "batch_output")


@dataclass(frozen=True)
class FileInfo:
    """One file as OpenAI's API tells of it."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    object: str = "file"


class Files:
    """The files of a store."""

    def __init__(self, store: Path) -> None:
        self._root = store / FOLDER

    def make(self, tenant: Tenant, filename: str, purpose: str) -> tuple[str, Path]:
        """Return the id and the path of a new file, empty as yet; `filename` is only shown, never a path.

        The tenant's place on the disk is `Service.storing`'s business.

        Raises:
            ApiError: 400, the purpose is unknown.
        """
        if purpose not in PURPOSES:
            raise ApiError(400, f"purpose = {shown(purpose)} is unknown{nearest(purpose, PURPOSES)}", param="purpose",
                           code="invalid_value")
        folder = self._folder(tenant)
        folder.mkdir(parents=True, exist_ok=True)
        file_id = f"file-{uuid.uuid4().hex}"
        meta = {"filename": filename[:256], "purpose": purpose, "created_at": int(time.time())}
        (folder / f"{file_id}.json").write_text(json.dumps(meta), encoding="utf-8")
        path = folder / f"{file_id}.jsonl"
        path.touch()
        return file_id, path

    def path(self, tenant: Tenant, file_id: str) -> Path:
        """Return where a tenant's file lies.

        Raises:
            ApiError: 404, the same for another tenant's and for none.
        """
        path = self._folder(tenant) / f"{file_id}.jsonl"
        if not FILE_ID.fullmatch(file_id) or not path.is_file():
            raise _unknown(file_id)
        return path

    def info(self, tenant: Tenant, file_id: str) -> dict[str, Any]:
        """Return what is told of a tenant's file.

        Raises:
            ApiError: 404.
        """
        path = self.path(tenant, file_id)
        try:
            meta = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            return asdict(FileInfo(file_id, path.stat().st_size, **meta))
        except FileNotFoundError:  # removed between two looks, or half of it by a crash
            raise _unknown(file_id) from None

    def all(self, tenant: Tenant) -> Iterator[dict[str, Any]]:
        """Yield what is told of each file of a tenant; what is not whole is left out."""
        folder = self._folder(tenant)
        for path in sorted(folder.glob("file-*.jsonl")) if folder.is_dir() else ():
            with contextlib.suppress(ApiError):
                yield self.info(tenant, path.stem)

    def used_bytes(self, tenant: Tenant) -> int:
        """Return how much a tenant's files take on the disk."""
        return tree_bytes(self._folder(tenant))

    def remove(self, tenant: Tenant, file_id: str) -> None:
        """Remove a tenant's file.

        Raises:
            ApiError: 404.
        """
        path = self.path(tenant, file_id)
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)

    def _folder(self, tenant: Tenant) -> Path:
        return self._root / tenant.name


def _unknown(file_id: str) -> ApiError:
    return ApiError(404, f"file {shown(file_id)} does not exist, or your key may not use it; GET /v1/files lists what "
                         "it may use", param="file_id", code="file_not_found")
