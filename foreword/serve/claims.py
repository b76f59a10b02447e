"""Which of the servers over one store works on a batch: whoever holds its lock, which goes when the server does."""

import contextlib
from pathlib import Path
from typing import IO


class Claim:
    """A lock that is held until `release`, or until the process ends."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def release(self) -> None:
        """Let another server have it; harmless if that was done before."""
        self._file.close()


def claim(path: Path) -> Claim | None:
    """Return the claim on what `path` is the lock file of, or None if another server (or task) has it.

    Servers on several machines need a file system whose locks reach across them (NFS 4, Lustre, CephFS). Without
    `fcntl` (Windows) everybody gets a claim.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
    return Claim(file)
