"""Who may ask: API keys, kept only as hashes, and the limits of the tenant that each one belongs to.

A key is `fw-<id>-<secret>`. The secret has 256 random bits, so one round of SHA-256 hides it: there is nothing to
guess. The file is read again when it changes, so a key that is added or revoked counts from the next request on.
"""

import dataclasses
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword.config import build
from foreword.errors import ConfigError
from foreword.serve.faults import ApiError

KEYS_FILE, TENANTS = "keys.json", "tenants"
LOCAL = "local"
"""The tenant of a server without keys, and the owner of the forewords that lie directly in the store."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
KEY = re.compile(r"fw-([0-9a-f]{8})-([\w-]{43})", re.ASCII)
NO_HASH = "0" * 64


@dataclass(frozen=True)
class Quota:
    """What a tenant may use; None is no limit.

    Attributes:
        requests_per_min: HTTP requests that make text.
        tokens_per_min: of prompts and answers; a request counts its prompt and what it was given at last.
        rows: answers that may be in the making or waiting at one time.
        forewords: how many it may keep in the store.
        store_bytes: how much its forewords and files may take on the disk.
    """

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    rows: int | None = None
    forewords: int | None = None
    store_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"quota {name} = {value!r} must be a whole number of at least 1, or left out")


@dataclass(frozen=True)
class Key:
    """One API key as the file has it: no secret, only the secret's SHA-256.

    Attributes:
        id: the part of the key that may be shown.
        tenant: whose forewords it sees.
        secret_sha256: hexadecimal.
        grants: names of the operator's forewords (those directly in the store) that it may use too; `*` for all.
        operator: may read `/metrics` and the state of the whole server.
        quota: the tenant's limits; the newest key of a tenant decides.
        created: seconds since 1970.
    """

    id: str
    tenant: str
    secret_sha256: str
    grants: tuple[str, ...] = ()
    operator: bool = False
    quota: Quota = field(default_factory=Quota)
    created: float = 0.0


@dataclass(frozen=True)
class Tenant:
    """Who is asking. Without keys everybody is the operator."""

    name: str = LOCAL
    grants: tuple[str, ...] = ()
    operator: bool = True
    quota: Quota = field(default_factory=Quota)
    key_id: str = ""

    def may_use_shared(self, name: str) -> bool:
        """Return whether it may use the operator's foreword of that name."""
        return self.name == LOCAL or "*" in self.grants or name in self.grants


class Keyring:
    """The keys of a store, in `keys.json`, readable by its owner alone.

    A store that never had the file is open: everybody is the operator. Where this process has seen the file, or tenants
    have forewords, its loss lets nobody in rather than everybody.
    """

    def __init__(self, store: Path) -> None:
        self._path = store / KEYS_FILE
        self._stamp: tuple[int, int, int] | None = None
        self._seen = (store / TENANTS).is_dir()  # only a key's holder has a place there
        self._keys: dict[str, Key] = {}
        self._lock = threading.Lock()

    def keys(self) -> dict[str, Key]:
        """Return the keys by id, read anew if the file has changed.

        Raises:
            ConfigError: the file is damaged or cannot be read; a server then goes on with the keys it knew.
        """
        with self._lock:
            try:
                stamp = _stamp(self._path)
            except OSError as error:
                self._seen = True  # there may be keys behind it
                raise ConfigError(f"{self._path} cannot be read ({error.strerror}); mend its rights") from None
            self._seen = self._seen or stamp is not None
            if stamp != self._stamp:
                self._keys = _read(self._path) if stamp else {}
                self._stamp = stamp
            return self._keys

    def lost(self) -> bool:
        """Return whether there must have been keys, and their file is gone."""
        return not self.keys() and self._stamp is None and self._seen

    def add(
        self, tenant: str, *, grants: tuple[str, ...] = (), operator: bool = False, quota: Quota | None = None
    ) -> str:
        """Return a new key, which is not kept and cannot be shown again.

        Raises:
            ConfigError: the tenant's name cannot be one.
        """
        if not NAME.fullmatch(tenant):
            form = "1 to 64 of a-z, 0-9, - and _, and begin with a letter or digit"
            raise ConfigError(f"tenant {tenant!r} must be {form}")
        secret, key_id = secrets.token_urlsafe(32), secrets.token_hex(4)
        made = Key(key_id, tenant, _hash(secret), tuple(grants), operator, quota or Quota(), time.time())
        self._write({**self.keys(), key_id: made})
        return f"fw-{key_id}-{secret}"

    def revoke(self, key_id: str) -> Key:
        """Remove a key and return what it was; it is refused from the next request on.

        Raises:
            ConfigError: there is no such key.
        """
        keys = dict(self.keys())
        if key_id not in keys:
            raise ConfigError(f"key {key_id!r} does not exist; `foreword keys list` shows the ids")
        gone = keys.pop(key_id)
        self._write(keys)
        return gone

    def who(self, authorization: str | None) -> Tenant:
        """Return who is asking, from the request's Authorization header.

        Raises:
            ApiError: 401, the same for no key, an unknown one and a wrong secret.
        """
        keys = self._known()
        if not self._seen:
            return Tenant()
        found = KEY.fullmatch((authorization or "").removeprefix("Bearer ").strip())
        key = keys.get(found[1]) if found else None
        digest = _hash(found[2] if found else "")  # hashed and compared in any case: the time tells nothing
        if not hmac.compare_digest(digest, key.secret_sha256 if key else NO_HASH) or key is None:
            raise ApiError(
                401, "the API key is missing or not valid; send the header `Authorization: Bearer fw-...`",
                code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"},
            )
        return _tenant(keys, key)

    def holder(self, key_id: str) -> Tenant | None:
        """Return who holds a key, to go on with work that was begun with it; None if it was revoked meanwhile."""
        keys = self._known()
        if key_id in keys:
            return _tenant(keys, keys[key_id])
        return None if key_id or self._seen else Tenant()

    def _known(self) -> dict[str, Key]:
        try:
            return self.keys()
        except ConfigError:
            return self._keys

    def _write(self, keys: dict[str, Key]) -> None:
        """Replace the file in one rename; it never exists with rights for others."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"keys": [dataclasses.asdict(key) for key in keys.values()]}, indent=2) + "\n"
        work = self._path.with_name(f".{KEYS_FILE}.{os.getpid()}")
        with open(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        work.replace(self._path)
        self._seen = True


def _read(path: Path) -> dict[str, Key]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["keys"]
        keys = [build(Key, row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ConfigError(f"{path} is damaged ({' '.join(str(error).split())}); restore it from a copy") from None
    return {key.id: key for key in keys}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when the file does; None if there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _tenant(keys: dict[str, Key], key: Key) -> Tenant:
    return Tenant(key.tenant, key.grants, key.operator, _quota(keys, key.tenant), key.id)


def _quota(keys: dict[str, Key], tenant: str) -> Quota:
    return max((key for key in keys.values() if key.tenant == tenant), key=lambda key: key.created).quota


def describe(key: Key) -> dict[str, Any]:
    """Return a key as `foreword keys list` shows it: without the hash."""
    row = dataclasses.asdict(key)
    row.pop("secret_sha256")
    return {**row, "quota": {name: value for name, value in row["quota"].items() if value is not None}}
