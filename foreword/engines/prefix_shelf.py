"""The gateway's shelf: which version of which foreword is written as which prefix file."""

import threading
from pathlib import Path

from foreword.backbone import Backbone
from foreword.engines.export import export_one
from foreword.engines.prefix_files import PrefixFile
from foreword.errors import PromptError
from foreword.serve.pool import Lease

REMEMBERED = 65_536


class PrefixShelf:
    """Prefix files of one backbone by the forewords' versions; safe to call from any thread."""

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        self._folder, self._backbone = folder, backbone
        self._files: dict[str, PrefixFile] = {}
        self._refused: dict[str, str] = {}
        self._lock = threading.Lock()

    def find(self, version: str) -> PrefixFile | None:
        """Return a version's file; None if it has not been written, or was taken away since.

        Raises:
            PromptError: it was found that vLLM cannot serve this version.
        """
        with self._lock:
            if version in self._refused:
                raise PromptError(self._refused[version])
            file = self._files.get(version)
        return file if file is not None and (self._folder / file.name).is_file() else None

    def write(self, lease: Lease) -> None:
        """Write the file of a leased foreword, or remember why there can be none.

        A fault of the disk is not remembered.

        Raises:
            ForewordError: the file cannot be written.
        """
        try:
            file = export_one(lease.prompt, self._backbone, self._folder)
        except PromptError as error:
            self._keep(self._refused, lease.version, f"this foreword cannot be served: {error}")
            return
        self._keep(self._files, lease.version, file)

    def _keep(self, table: dict, version: str, value: PrefixFile | str) -> None:
        with self._lock:
            table.pop(version, None)
            table[version] = value
            if len(table) > REMEMBERED:
                del table[next(iter(table))]
