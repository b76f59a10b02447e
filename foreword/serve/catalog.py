"""Which forewords there are: names in the store's directories, each with its owner and its content-addressed version.

    STORE/<name>/                       an artefact, put there by the operator: the store is a watched directory
    STORE/<name>/<digest12>/            versions stored over HTTP; the file `current` names the one that counts
    STORE/tenants/<tenant>/<name>/...   a tenant's own, either form

The disk is the truth and is looked at for every request (two `stat`s), so a file that appears, changes or vanishes
counts at once, and a restart has nothing to recover.
"""

import filecmp
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from foreword.artifact.directory import MANIFEST, PEFT_CONFIG, WEIGHTS
from foreword.artifact.format import read_json
from foreword.errors import ArtifactError
from foreword.serve.faults import ApiError, bad_field, shown, unknown_model
from foreword.serve.tenants import KEYS_FILE, LOCAL, TENANTS, Tenant

CURRENT = "current"
RESERVED = (TENANTS, KEYS_FILE)
"""What the store itself keeps beside the forewords, besides hidden names, which no foreword can have."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Entry:
    """One version of a foreword on the disk.

    Attributes:
        owner: the tenant whose it is.
        name: in the owner's own names.
        version: 12 hexadecimal digits of the content digest (of the files' digest for PEFT's, which have none).
        path: of the artefact's directory.
        stamp: changes when the files do, even where no digest is read.
        created: seconds since 1970.
    """

    owner: str
    name: str
    version: str
    path: Path
    stamp: tuple[int, ...]
    created: int

    @property
    def id(self) -> str:
        """What the pool knows it by: no two owners share one, so neither speeds up the other's first use."""
        return f"{self.owner}/{self.name}@{self.version}"


class Catalog:
    """The forewords of a store, as each tenant may see them."""

    def __init__(self, store: Path, backbone_name: str) -> None:
        """Look at a store; `backbone_name` is the plain model's, which no foreword may take."""
        self.store, self.backbone_name = store, backbone_name
        self._versions: dict[tuple[Path, tuple[int, ...]], str] = {}

    def resolve(self, tenant: Tenant, model: str) -> Entry:
        """Return what a tenant means by `name` or `name@version`: its own first, then a granted one of the operator's.

        Raises:
            ApiError: 404, the same whether nobody has such a foreword or another tenant does.
        """
        name, _, version = model.partition("@")
        if NAME.fullmatch(name) and (not version or VERSION.fullmatch(version)):
            for owner in self._owners(tenant, name):
                entry = self._look(owner, name, version)
                if entry is not None:
                    return entry
        raise unknown_model(model)

    def own(self, tenant: Tenant, name: str) -> Path:
        """Return where a tenant's foreword of that name lies, or would.

        Raises:
            ApiError: the name cannot be one.
        """
        check_name(name, self.backbone_name)
        return self._root(tenant.name) / name

    def listed(self, tenant: Tenant) -> dict[str, tuple[str, int]]:
        """Return the owner and the time (seconds since 1970) of all that a tenant may use, by name; no file is read."""
        found: dict[str, tuple[str, int]] = {}
        for owner in dict.fromkeys((LOCAL, tenant.name)):
            for name in self._names(owner):
                if owner == tenant.name or tenant.may_use_shared(name):
                    place = self._place(owner, name, "")
                    if place is not None:
                        found[name] = (owner, place[1][0] // 10**9)
        return dict(sorted(found.items()))

    def page(self, tenant: Tenant, after: str | None, limit: int) -> tuple[list[Entry], bool]:
        """Return the entries of a page of what a tenant may use, by name, and whether more follow.

        A name whose artefact cannot be read is left out.
        """
        names = [(name, owner) for name, (owner, _) in self.listed(tenant).items() if after is None or name > after]
        found = [self._look(owner, name, "") for name, owner in names[:limit]]
        return [entry for entry in found if entry is not None], len(names) > limit

    def used(self, tenant: Tenant) -> tuple[int, int]:
        """Return how many forewords a tenant keeps, and their bytes on the disk."""
        root = self._root(tenant.name)
        names = list(self._names(tenant.name))
        return len(names), sum(tree_bytes(root / name) for name in names)

    def install(self, tenant: Tenant, name: str, made: Path, version: str) -> Entry:
        """Move a checked artefact in as a version, make it the current one, and return its entry.

        A version that is there already is kept, for the same digest is the same content; only files that the disk
        damaged since are replaced. Requests see the old version or the new one, whole, also when the process is
        killed here.
        """
        home = self.own(tenant, name)
        home.mkdir(parents=True, exist_ok=True)
        if (home / version).is_dir():
            _heal(home / version, made)
            shutil.rmtree(made)
        else:
            made.rename(home / version)
        work = home / f".{CURRENT}.{uuid.uuid4().hex[:12]}"
        work.write_text(version, encoding="ascii")
        work.replace(home / CURRENT)
        entry = self._look(tenant.name, name, version)
        if entry is None:
            raise ArtifactError(f"foreword {name!r} vanished while it was stored; store it again")
        return entry

    def remove(self, tenant: Tenant, name: str) -> None:
        """Take a tenant's own foreword off the disk, all versions; requests under way keep what they hold.

        Raises:
            ApiError: 404, it has none of that name.
        """
        home = self._root(tenant.name) / name
        if not NAME.fullmatch(name) or self._look(tenant.name, name, "") is None:
            raise unknown_model(name)
        gone = home.with_name(f".{name}.{uuid.uuid4().hex[:12]}.gone")
        home.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def workplace(self, tenant: Tenant) -> Path:
        """Return a new hidden directory on the store's file system, to put arriving files in."""
        root = self._root(tenant.name)
        work = root / f".incoming.{uuid.uuid4().hex}"
        work.mkdir(parents=True)
        return work

    def stamps(self) -> dict[str, tuple[int, ...]]:
        """Return a stamp for each foreword of every owner, by `owner/name`: what the watch compares."""
        tenants = self.store / TENANTS
        owners = [LOCAL, *(p.name for p in _folders(tenants))] if tenants.is_dir() else [LOCAL]
        found = {}
        for owner in owners:
            for name in self._names(owner):
                place = self._place(owner, name, "")
                if place is not None:
                    found[f"{owner}/{name}"] = place[1]
        return found

    def current(self, owner: str, name: str) -> Entry | None:
        """Return the version of an owner's foreword that counts now; None if it is not there, or not whole."""
        return self._look(owner, name, "")

    def unchanged(self, entry: Entry) -> bool:
        """Return whether the files of an entry are still those that it was made from."""
        return _stamp(entry.path) == entry.stamp

    def _owners(self, tenant: Tenant, name: str) -> list[str]:
        shared = tenant.name != LOCAL and tenant.may_use_shared(name)
        return [tenant.name, LOCAL] if shared else [tenant.name]

    def _root(self, owner: str) -> Path:
        return self.store if owner == LOCAL else self.store / TENANTS / owner

    def _names(self, owner: str) -> Iterator[str]:
        for path in _folders(self._root(owner)):
            if NAME.fullmatch(path.name) and not (owner == LOCAL and path.name == TENANTS):
                yield path.name

    def _place(self, owner: str, name: str, version: str) -> tuple[Path, tuple[int, ...]] | None:
        """Return the directory of a version and its stamp, None if it is not there."""
        home = self._root(owner) / name
        if owner == LOCAL and name == TENANTS:
            return None
        current = version or _read_current(home)
        for path in (home / current, home) if current else (home,):
            stamp = _stamp(path)
            if stamp:
                return path, stamp
        return None

    def _look(self, owner: str, name: str, version: str) -> Entry | None:
        place = self._place(owner, name, version)
        if place is None:
            return None
        path, stamp = place
        try:
            found = path.name if path != self._root(owner) / name else self._version(path, stamp)
        except (ArtifactError, OSError):
            return None  # damaged or gone between two looks: not there, as far as a client can tell
        if version and found != version:
            return None
        return Entry(owner, name, found, path, stamp, stamp[0] // 10**9)

    def _version(self, path: Path, stamp: tuple[int, ...]) -> str:
        if (path, stamp) not in self._versions:
            if len(self._versions) > 1 << 16:
                self._versions.clear()
            self._versions[path, stamp] = _digest(path)
        return self._versions[path, stamp]


def check_name(name: str, backbone_name: str) -> None:
    """Refuse a name that a foreword cannot have.

    Raises:
        ApiError: 400.
    """
    if not NAME.fullmatch(name):
        raise bad_field("name", f"name = {shown(name)} must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', and begin "
                                "with a letter or digit")
    if name == backbone_name or name.lower() in RESERVED:  # some file systems take `Keys.json` for the same file
        raise ApiError(409, f"name = {shown(name)} is taken by the server; choose another", param="name", code="taken")


def tree_bytes(path: Path) -> int:
    """Return the bytes of all files under a directory; what vanishes meanwhile counts nothing."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def _heal(kept: Path, made: Path) -> None:
    """Replace what differs in a stored version by what its digest stands for, file by file.

    One that is as it was is not touched: its time would change, and the pool would load it again.
    """
    for path in sorted(made.iterdir()):
        there = kept / path.name
        if not there.is_file() or not filecmp.cmp(path, there, shallow=False):
            path.replace(there)


def _folders(root: Path) -> Iterator[Path]:
    try:
        with os.scandir(root) as found:
            names = [entry.name for entry in found if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return
    yield from (root / name for name in sorted(names))


def _read_current(home: Path) -> str | None:
    try:
        with open(f"{home}/{CURRENT}", encoding="ascii") as file:
            text = file.read(64).strip()
    except (OSError, ValueError):
        return None
    return text if VERSION.fullmatch(text) else None


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return time, size and inode of an artefact's manifest (or PEFT's config) and tensors; None if one is missing."""
    for name in (MANIFEST, PEFT_CONFIG):
        try:
            found = [os.stat(f"{path}/{file}") for file in (name, WEIGHTS)]
        except OSError:
            continue
        return tuple(number for s in found for number in (s.st_mtime_ns, s.st_size, s.st_ino))
    return None


def _digest(path: Path) -> str:
    """Return the version of a plain artefact: its manifest's content digest, or that of PEFT's two files."""
    if (path / MANIFEST).is_file():
        digest = str(read_json(path / MANIFEST).get("digest"))
        if not VERSION.match(digest):
            raise ArtifactError(f"{path / MANIFEST} has no digest; save the prompt again")
        return digest[:12]
    content = hashlib.sha256()
    for name in (PEFT_CONFIG, WEIGHTS):
        content.update((path / name).read_bytes())
    return content.hexdigest()[:12]
