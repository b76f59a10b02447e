"""Verified downloads: a file arrives whole and with the digest we expect, or not at all."""

import hashlib
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from foreword.errors import DataError


def file_digest(path: str | Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, sha256: str, path: str | Path, timeout_sec: float = 60.0) -> Path:
    """Return `path` after making sure it holds the bytes with digest `sha256`, fetched from `url` if need be.

    A file with the right digest is not fetched again. The new file appears in one atomic step.

    Raises:
        DataError: the address cannot be read, or the bytes have another digest (nothing is left behind).
    """
    path = Path(path)
    if path.is_file() and file_digest(path) == sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _fetch(url, partial, timeout_sec)
        found = file_digest(partial)
        if found != sha256:
            raise DataError(f"{url} has sha256 {found}, not the expected {sha256}; it changed or was cut off")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _fetch(url: str, path: Path, timeout_sec: float) -> None:
    scheme = urllib.parse.urlparse(url).scheme
    if scheme not in ("https", "http", "file"):
        raise DataError(f"address {url!r} has scheme {scheme!r}; use https, http or file")
    try:
        with urllib.request.urlopen(url, timeout=timeout_sec) as answer, open(path, "wb") as file:
            shutil.copyfileobj(answer, file)
    except (urllib.error.URLError, OSError) as error:
        raise DataError(f"cannot download {url}: {error}; check the address and the network") from None
