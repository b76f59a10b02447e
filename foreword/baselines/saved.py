"""How a baseline is stored: only what it changed, with the backbone's fingerprint, in one directory.

`foreword.json` says what it is and what it belongs to; `adapter_model.safetensors` holds the changed parameters
(for LoRA, with `adapter_config.json` beside it, PEFT's own files). Full fine-tuning changes everything, so its
directory is an ordinary Transformers model with `foreword.json` beside it.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import foreword
from foreword.artifact.directory import MANIFEST, WEIGHTS, write_directory
from foreword.artifact.format import (
    BASELINE_FORMAT,
    REFETCH,
    BackboneRecord,
    check_finite,
    digest_tensors,
    plain,
    read_json,
    read_shapes,
    read_tensors,
)
from foreword.artifact.store import pack_tensors
from foreword.backbone import Backbone
from foreword.config import build, to_dict
from foreword.errors import ArtifactError, ConfigError

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SavedBaseline:
    """What `foreword.json` holds beside a baseline's files.

    Attributes:
        method: as in a recipe (`top_layers`, `adapter`, ...).
        title: for tables: `top2`, `adapter8`.
        spec: the method's options, with every size decided.
        backbone: what it was learned on.
        digest: sha256 of the stored tensors; None where the files are a whole model, or text alone.
        content: what is not tensors: a written prompt's examples.
        recipe, scores, data_digest: how it was made and what was measured.
        libraries: versions.
    """

    format: str = BASELINE_FORMAT
    version: int = VERSION
    method: str
    title: str
    spec: dict[str, Any] = field(default_factory=dict)
    backbone: BackboneRecord = field(default_factory=BackboneRecord)
    digest: str | None = None
    content: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] | None = None
    scores: dict[str, Any] | None = None
    data_digest: str | None = None
    libraries: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the manifest as JSON text; the same manifest always gives the same text."""
        return json.dumps(to_dict(self), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def describe(
    backbone: Backbone,
    method: str,
    spec: Any,
    *,
    digest: str | None = None,
    content: Mapping[str, Any] | None = None,
    recipe: Any = None,
    scores: Mapping[str, Any] | None = None,
    data_digest: str | None = None,
) -> SavedBaseline:
    """Return the manifest of a baseline that was learned on `backbone`."""
    libraries = {"foreword": foreword.__version__}
    libraries |= {name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors")}
    return SavedBaseline(
        method=method,
        title=spec.title,
        spec=to_dict(spec),
        backbone=BackboneRecord(backbone.source, backbone.fingerprint),
        digest=digest,
        content=plain(to_dict(content or {})),
        recipe=plain(to_dict(recipe)),
        scores=plain(dict(scores)) if scores is not None else None,
        data_digest=data_digest,
        libraries=libraries,
    )


def write_tensors(
    directory: Path,
    backbone: Backbone,
    method: str,
    spec: Any,
    tensors: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    extra: Mapping[str, bytes] | None = None,
) -> Path:
    """Write changed parameters and their manifest as one directory, atomically, and return it.

    Args:
        directory: to be made, or an older one to be replaced.
        backbone: what they were learned on.
        method, spec: what they are.
        tensors: the changed parameters by name, stored in float32.
        facts: recipe, scores, data_digest.
        extra: further files by name; one called like the tensors' file replaces it.

    Raises:
        ArtifactError: NaN or infinite values, or the directory holds other things or cannot be written.
    """
    stored = {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}
    check_finite(stored, f"the {method}")
    saved = describe(backbone, method, spec, digest=digest_tensors(stored), **facts)
    files = {WEIGHTS: pack_tensors(stored), MANIFEST: saved.to_json().encode(), **(extra or {})}
    return write_directory(directory, files)


def is_baseline(directory: object) -> bool:
    """Return whether `directory` holds a saved baseline."""
    if not isinstance(directory, str | Path) or not (Path(directory) / MANIFEST).is_file():
        return False
    return read_json(Path(directory) / MANIFEST).get("format") == BASELINE_FORMAT


def read_baseline(directory: str | Path) -> SavedBaseline:
    """Return the manifest in a directory.

    Raises:
        ArtifactError: not there, not JSON, of another format or a newer version, or a field is wrong.
    """
    path = Path(directory) / MANIFEST
    tree = read_json(path)
    if (found := tree.get("format")) != BASELINE_FORMAT:
        raise ArtifactError(f"{path}: format = {found!r} is not {BASELINE_FORMAT!r}; it is no baseline's directory")
    if tree.get("version") != VERSION:
        raise ArtifactError(
            f"{path}: format version {tree.get('version')!r} is unknown, this Foreword reads {VERSION}; upgrade it"
        )
    try:
        return build(SavedBaseline, tree)
    except (ConfigError, TypeError) as error:
        raise ArtifactError(f"{path}: {error}") from None


def check_belongs(saved: SavedBaseline, backbone: Backbone) -> None:
    """Raise unless a baseline was learned on this very backbone.

    Raises:
        ArtifactError: it names what differs.
    """
    mine, theirs = saved.backbone.fingerprint or {}, backbone.fingerprint
    parts = [part for part in theirs if mine.get(part) != theirs[part]]
    if parts:
        raise ArtifactError(
            f"this {saved.method} was learned on another backbone than {backbone.source!r} (differs in "
            f"{', '.join(parts)}); load {saved.backbone.source!r}"
        )


def read_changes(directory: Path, saved: SavedBaseline, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the stored tensors in float32, checked against the parameters they are for and against the digest.

    Raises:
        ArtifactError: names or shapes differ, or the content is not what the manifest says.
    """
    path = directory / WEIGHTS
    shapes, needed = read_shapes(path), {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    if shapes != needed:
        name = min(set(shapes.items()) ^ set(needed.items()))[0]
        raise ArtifactError(
            f"{path}: tensor {name!r} is {shapes.get(name)}, the {saved.method} needs {needed.get(name)}; {REFETCH}"
        )
    return read_stored(directory, saved)


def read_stored(directory: Path, saved: SavedBaseline) -> dict[str, Tensor]:
    """Return all stored tensors in float32, checked against the digest.

    Raises:
        ArtifactError: the file is damaged, or its content is not what the manifest says.
    """
    path = directory / WEIGHTS
    tensors = read_tensors(path, read_shapes(path))
    if digest_tensors(tensors) != saved.digest:
        raise ArtifactError(f"{path} is not what {MANIFEST} says (content digest differs); {REFETCH}")
    return tensors
