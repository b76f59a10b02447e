"""Prefix files: one compiled foreword each, as vLLM's workers read it. The name is the sha256 of the content.

A file never changes, so every cache may keep what it read under its name for ever, and a reader can tell a damaged file
from a whole one. This module needs PyTorch and safetensors only: it also runs inside vLLM, beside nothing else of ours.

The protocol between gateway and connector: a request's prompt is P placeholders and then the text's token ids, its
`cache_salt` names the file. vLLM hashes the salt into its blocks, so no two prefixes, and no prefix and ordinary text,
ever share one.
"""

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foreword.errors import ArtifactError

FORMAT, VERSION = "foreword.vllm-prefix", 1
SALT = "pfx:"
DIGEST = re.compile(r"[0-9a-f]{64}")
SCOPE = re.compile(r"[0-9a-z]{1,32}")
SUFFIX = ".safetensors"
META = "foreword"
TENSOR = re.compile(r"layer\.(\d{1,4})\.(key|value)")
LONGEST_META = 1 << 16  # bytes of a file's own description; ours have some hundred

LayerStates = tuple[Tensor, Tensor]
"""One layer's keys and values [P, K, D], keys after rotary embedding, the text starting at position P."""


@dataclass(frozen=True)
class PrefixHead:
    """What a prefix file says of itself, read without its tensors.

    Attributes:
        length: P, virtual tokens.
        layers: how many, each with a prefix.
        kv_heads: K of each layer.
        key_width, value_width: D of each layer.
        placeholder: token id that stands P times before the text in a request.
        includes_bos: the first position is the BOS token, so the text must not begin with one.
    """

    length: int
    layers: int
    kv_heads: tuple[int, ...]
    key_width: tuple[int, ...]
    value_width: tuple[int, ...]
    placeholder: int
    includes_bos: bool


@dataclass(frozen=True)
class PrefixFile:
    """One exported prefix: its digest (and so its file's name) and its head."""

    digest: str
    head: PrefixHead

    @property
    def name(self) -> str:
        """The file's name in its directory."""
        return file_name(self.digest)

    def record(self) -> dict[str, Any]:
        """Return what an index keeps of it, as plain JSON values."""
        head = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.head).items()}
        return {"digest": self.digest, "file": self.name, **head}


def file_name(digest: str) -> str:
    """Return the name of a digest's file."""
    return digest + SUFFIX


def salt_of(digest: str, scope: str = "") -> str:
    """Return the `cache_salt` of a request that wants a prefix; requests of different scopes share no cached block."""
    return f"{SALT}{digest}:{scope}" if scope else SALT + digest


def digest_of(salt: str | None) -> str | None:
    """Return the digest that a request's salt names; None for a request without a prefix.

    Raises:
        ArtifactError: the salt begins like one of ours and does not go on like one.
    """
    if salt is None or not salt.startswith(SALT):
        return None
    digest, colon, scope = salt.removeprefix(SALT).partition(":")
    if not DIGEST.fullmatch(digest) or (colon and not SCOPE.fullmatch(scope)):
        raise ArtifactError(f"cache_salt = {salt[:100]!r} must be {SALT}<64 hexadecimal digits>[:<scope>]")
    return digest


def pack_prefix(layers: Sequence[LayerStates], placeholder: int, includes_bos: bool) -> tuple[PrefixFile, bytes]:
    """Return a prefix's description and its file's content; the same prefix always gives the same bytes.

    Raises:
        ArtifactError: layers of different lengths, or values that are not finite.
    """
    tensors = {}
    for number, pair in enumerate(layers):
        for part, states in zip(("key", "value"), pair, strict=True):
            tensors[f"layer.{number}.{part}"] = states.detach().cpu().contiguous()
    bad = [name for name, states in tensors.items() if not torch.isfinite(states).all()]
    if bad:
        raise ArtifactError(f"tensor {bad[0]!r} has NaN or infinite values; train the foreword again")
    head = _head({name: tuple(t.shape) for name, t in tensors.items()}, placeholder, includes_bos, "the prefix")
    described = {"format": FORMAT, "version": VERSION, "placeholder": placeholder, "includes_bos": includes_bos}
    # One key of metadata only: safetensors keeps them in a map without order, and the bytes are the name.
    content = safetensors.torch.save(tensors, metadata={META: json.dumps(described, sort_keys=True)})
    return PrefixFile(hashlib.sha256(content).hexdigest(), head), content


def write_prefix(folder: Path, file: PrefixFile, content: bytes) -> Path:
    """Put a prefix file into its directory and return its path; readers see it whole or not at all.

    Raises:
        ArtifactError: the directory cannot be written.
    """
    path = folder / file.name
    if path.is_file() and path.stat().st_size == len(content):
        return path
    return write_whole(path, content)


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file beside its place, flush it to the disk, and rename it there.

    Raises:
        ArtifactError: it cannot be written.
    """
    work = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with work.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        work.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            work.unlink()
        reason = error.strerror or error  # no path: clients read this too
        raise ArtifactError(f"{path.name} cannot be written: {reason}; give another directory") from None
    return path


def read_head(folder: Path, digest: str) -> PrefixHead:
    """Return what a file says of itself, checked for form; its content is checked when its tensors are read.

    Raises:
        ArtifactError: there is no such file, or it is no prefix file.
    """
    path = folder / file_name(digest)
    try:
        with safe_open(path, framework="pt") as stream:
            meta = (stream.metadata() or {}).get(META, "")
            shapes = {name: tuple(stream.get_slice(name).get_shape()) for name in stream.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ArtifactError(f"prefix {digest} is not in the prefix directory; export it") from None
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path.name} cannot be read ({' '.join(str(error).split())}); export it again") from None
    return _head(shapes, *_described(meta, path.name), path.name)


def read_layers(folder: Path, digest: str) -> list[LayerStates]:
    """Return the keys and values of a file by layer, once its content is found to be what its name says.

    Raises:
        ArtifactError: it is gone, damaged, or another file under this name.
    """
    name = file_name(digest)
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{name} cannot be read ({error.strerror or error}); export it again") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise ArtifactError(f"{name} does not have the content that its name says; export it again")
    tensors = safetensors.torch.load(content)
    return [(tensors[f"layer.{number}.key"], tensors[f"layer.{number}.value"]) for number in range(len(tensors) // 2)]


def _described(meta: str, name: str) -> tuple[int, bool]:
    """Return placeholder and includes_bos from a file's metadata."""
    try:
        found = json.loads(meta) if len(meta) <= LONGEST_META else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise ArtifactError(f"{name} is no prefix file of version {VERSION}; export it again with this version")
    placeholder, includes_bos = found.get("placeholder"), found.get("includes_bos")
    if type(placeholder) is not int or placeholder < 0 or type(includes_bos) is not bool:
        raise ArtifactError(f"{name} has a damaged description; export it again")
    return placeholder, includes_bos


def _head(shapes: dict[str, tuple[int, ...]], placeholder: int, includes_bos: bool, where: str) -> PrefixHead:
    """Return the head that tensors of these shapes have; all layers must be there, of one length."""
    count = len(shapes) // 2
    wanted = [f"layer.{number}.{part}" for number in range(count) for part in ("key", "value")]
    sound = count > 0 and sorted(shapes) == sorted(wanted)
    sound = sound and all(len(shape) == 3 and min(shape) > 0 for shape in shapes.values())
    sound = sound and len({shape[0] for shape in shapes.values()}) == 1
    if not sound:
        raise ArtifactError(f"{where} does not hold keys and values [P, K, D] of one length for every layer from 0 on")
    keys, values = ([shapes[f"layer.{number}.{part}"] for number in range(count)] for part in ("key", "value"))
    if any(key[1] != value[1] for key, value in zip(keys, values, strict=True)):
        raise ArtifactError(f"{where} has a layer whose keys and values have different numbers of heads")
    kv_heads, key_width, value_width = (tuple(s[i] for s in of) for of, i in ((keys, 1), (keys, 2), (values, 2)))
    return PrefixHead(keys[0][0], count, kv_heads, key_width, value_width, placeholder, includes_bos)
