"""The files of an artefact, and writing them so that a reader sees the old directory or the new one, whole."""

import contextlib
import ctypes
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from foreword.errors import ArtifactError

MANIFEST = "foreword.json"
WEIGHTS = "adapter_model.safetensors"
TRAINING = "training.safetensors"
PEFT_CONFIG = "adapter_config.json"
CARD = "README.md"
FILES = (MANIFEST, WEIGHTS, TRAINING, PEFT_CONFIG, CARD)
"""Every file that an artefact may hold; nothing else is written, fetched or replaced."""

STALE_AFTER_SEC = 3600.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def write_directory(directory: Path, files: Mapping[str, bytes]) -> Path:
    """Write `files` as the whole content of `directory` and return it, replacing an artefact that is there.

    The files go to a directory beside it, are flushed to the disk, and take the name in one rename (an exchange
    where something stands there already). What a killed process left is swept by the next write after an hour.

    Raises:
        ArtifactError: `directory` is a file, holds files that no artefact has, or cannot be written.
    """
    directory = directory.expanduser().resolve()
    _check_replaceable(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _sweep(directory)
        with _workplace(directory) as work:
            for name, content in files.items():
                _write_file(work / name, content)
            _flush(work)
            _take_place(work, directory)
            _flush(directory.parent)
    except OSError as error:
        raise ArtifactError(f"{directory} cannot be written: {error.strerror or error}") from None
    return directory


def _check_replaceable(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise ArtifactError(f"{directory} is a file; give the path of a directory")
    strange = sorted(p.name for p in directory.iterdir() if p.name not in FILES) if directory.is_dir() else []
    if strange:
        raise ArtifactError(f"{directory} holds {strange[0]!r}, which is no part of a prompt; give a new directory")


@contextlib.contextmanager
def _workplace(directory: Path) -> Iterator[Path]:
    work = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:12]}.writing"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)  # after an exchange it holds the old artefact


def _sweep(directory: Path) -> None:
    """Remove what killed processes left beside `directory` more than an hour ago."""
    for left in directory.parent.glob(f".{directory.name}.*.writing"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_AFTER_SEC:
                shutil.rmtree(left)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _flush(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_place(work: Path, directory: Path) -> None:
    if not directory.exists():
        work.rename(directory)
    elif not _exchange(work, directory):
        # No exchange on this system: for an instant nothing stands there, but never a half-written artefact.
        old = work.with_suffix(".old.writing")
        directory.rename(old)
        work.rename(directory)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step (Linux renameat2); False where the system or file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
