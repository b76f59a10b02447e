"""Save a soft prompt as one directory, and load it: ours, PEFT's, or from the hub."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

import foreword
from foreword.artifact.card import model_card
from foreword.artifact.directory import CARD, MANIFEST, PEFT_CONFIG, TRAINING, WEIGHTS, write_directory
from foreword.artifact.format import (
    PEFT_TENSOR,
    REFETCH,
    BackboneRecord,
    Manifest,
    blank_prompt,
    check_finite,
    content_digest,
    digest_tensors,
    find_weights,
    plain,
    read_manifest,
    read_shapes,
    read_tensors,
    record_geometry,
    restore_geometry,
    tensor_names,
)
from foreword.artifact.hub import HubAccess, fetch_prompt, is_hub_id
from foreword.artifact.peft import peft_config, read_peft, why_not_peft
from foreword.backbone import Backbone
from foreword.config import to_dict
from foreword.errors import ArtifactError, PromptError, nearest
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.prompts.spec import PromptSpec


def save_prompt(
    prompt: SoftPrompt,
    directory: str | Path,
    backbone: Backbone | None = None,
    *,
    recipe: Any = None,
    scores: dict[str, Any] | None = None,
    data_digest: str | None = None,
) -> Path:
    """Write a prompt as an artefact and return its directory; the prompt afterwards carries the fingerprint.

    The directory is written beside its place and renamed into it, so a reader never sees half of it. PEFT loads it
    as it stands where PEFT can serve the prompt; where it cannot, there is no `adapter_config.json`.

    Args:
        prompt: trained or not; tables are stored float32 as they are, an MLP both folded and unfolded.
        directory: to be made, or an older artefact to be replaced.
        backbone: what the prompt was learned on; None keeps what a loaded prompt says.
        recipe: resolved configuration (dataclass or mapping); None keeps a loaded prompt's.
        scores: measured values, NaN becoming null; None keeps a loaded prompt's.
        data_digest: of the training data; None keeps a loaded prompt's.

    Raises:
        ArtifactError: NaN or infinite values, or `directory` holds other things or cannot be written.
        PromptError: the prompt does not belong to `backbone`.
    """
    if backbone is not None:
        prompt.check_backbone(backbone)
        prompt.fingerprint = backbone.fingerprint
    given = {"recipe": to_dict(recipe), "scores": scores, "data_digest": data_digest}
    meta = {**prompt.meta, **{key: value for key, value in given.items() if value is not None}}
    if backbone is not None:
        meta |= {"source": backbone.source, "num_layers": getattr(backbone.model.config, "num_hidden_layers", None)}
    return write_directory(Path(directory), _files(prompt, meta))


def _files(prompt: SoftPrompt, meta: dict[str, Any]) -> dict[str, bytes]:
    """Return the content of every file of the artefact by name."""
    folded = prompt.fold() if prompt.spec.reparam != "none" else prompt
    trained = _detached(prompt.state_dict()) if folded is not prompt else {}
    reason = why_not_peft(prompt, meta.get("num_layers"))
    names = tensor_names(prompt, in_peft_form=reason is None)
    served = _detached({name: folded.table(table) for table, name in names.items()})
    check_finite({**served, **trained}, "the prompt")
    manifest = make_manifest(prompt, meta, content_digest(folded), digest_tensors(trained) if trained else None)
    files = {WEIGHTS: pack_tensors(served), MANIFEST: manifest.to_json().encode()}
    if trained:
        files[TRAINING] = pack_tensors(trained)
    if reason is None:
        files[PEFT_CONFIG] = (json.dumps(peft_config(prompt, manifest.backbone.source), indent=2) + "\n").encode()
    files[CARD] = model_card(manifest, reason).encode()
    return files


def make_manifest(prompt: SoftPrompt, meta: dict[str, Any], digest: str, training_digest: str | None) -> Manifest:
    """Return the manifest of a prompt; `meta` gives recipe, scores, data digest and the backbone's source."""
    libraries = {"foreword": foreword.__version__}
    libraries |= {name: importlib.metadata.version(name) for name in ("torch", "transformers", "safetensors")}
    return Manifest(
        spec=prompt.spec,
        geometry=record_geometry(prompt.geometry),
        backbone=BackboneRecord(meta.get("source") or "", prompt.fingerprint, meta.get("num_layers")),
        digest=digest,
        training_digest=training_digest,
        text_format=prompt.format,
        recipe=plain(meta.get("recipe")),
        data_digest=meta.get("data_digest"),
        scores=plain(meta.get("scores")),
        libraries=libraries,
    )


def load_prompt(
    source: str | Path,
    backbone: Backbone | None = None,
    *,
    unfolded: bool = False,
    hub: HubAccess | None = None,
) -> SoftPrompt:
    """Return a saved prompt from a directory (ours or PEFT's) or a hub id, on the CPU or where `backbone` is.

    Its `meta` has source, recipe, scores, data_digest, digest and libraries; its `fingerprint` is the backbone's
    that it belongs to, so that another backbone refuses it (None in PEFT's files, which have none).

    Args:
        source: a directory or `owner/name`; a directory that exists goes first.
        backbone: check against it at once; needed only for a PEFT prefix whose config has no geometry.
        unfolded: load the reparametrisation to go on training, instead of the folded tables.
        hub: revision, token and the like for a hub id.

    Raises:
        ArtifactError: nothing there, damaged, of an unknown version or kind, or not what the digest says.
        PromptError: the prompt does not belong to `backbone`.
    """
    directory = _find(source, hub or HubAccess())
    own = (directory / MANIFEST).is_file()
    prompt = _load_own(directory, unfolded) if own else read_peft(directory, backbone)
    prompt.train(unfolded)  # a served prompt has no dropout
    if backbone is not None:
        prompt.check_backbone(backbone)
        prompt.to(backbone.device)
    return prompt


def _find(source: str | Path, hub: HubAccess) -> Path:
    """Return the local directory of a source, fetched if it is on the hub."""
    path = Path(source).expanduser()
    if path.is_file():
        raise ArtifactError(f"prompt {str(source)!r} is a file; give the directory that holds it")
    if path.is_dir():
        if not any((path / name).is_file() for name in (MANIFEST, PEFT_CONFIG)):
            raise ArtifactError(f"prompt {str(source)!r} has neither {MANIFEST} nor {PEFT_CONFIG}{_inside(path)}")
        return path
    inside = path.parent != Path() and path.parent.is_dir()  # then the name is mistyped, and no hub id
    if inside or not is_hub_id(str(source)):
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise ArtifactError(f"prompt {str(source)!r} is not a directory{nearest(path.name, beside[:1000])}")
    return fetch_prompt(str(source), hub)


def _inside(path: Path) -> str:
    """Return a hint where prompts lie one level deeper, as PEFT saves adapters with names."""
    inner = sorted(p.parent.name for name in (MANIFEST, PEFT_CONFIG) for p in path.glob(f"*/{name}"))
    return f"; did you mean {str(path / inner[0])!r}?" if inner else "; give the directory of a saved prompt"


def _load_own(directory: Path, unfolded: bool) -> SoftPrompt:
    manifest = read_manifest(directory / MANIFEST)
    served = _load_served(directory, manifest)
    prompt = served
    if unfolded and manifest.spec.reparam != "none":
        prompt = _load_trained(directory, manifest)
    prompt.fingerprint, prompt.format = manifest.backbone.fingerprint, manifest.text_format
    if content_digest(served) != manifest.digest:
        raise ArtifactError(
            f"{directory / WEIGHTS} is not what {MANIFEST} says (content digest differs); fetch it again, or remove "
            f"{MANIFEST} if another program rewrote the tensors on purpose"
        )
    kept = {name: getattr(manifest, name) for name in ("recipe", "scores", "data_digest", "digest", "libraries")}
    prompt.meta = {"source": manifest.backbone.source, "num_layers": manifest.backbone.num_layers, **kept}
    return prompt


def _load_served(directory: Path, manifest: Manifest) -> SoftPrompt:
    path = find_weights(directory)
    shapes = read_shapes(path)
    folded = _blank(dataclasses.replace(manifest.spec, reparam="none"), manifest, path)
    names = tensor_names(folded, in_peft_form=PEFT_TENSOR in shapes and len(folded.tables) == 1)
    wanted = {name: tuple(folded.table(table).shape) for table, name in names.items()}
    _check_shapes(path, shapes, wanted)
    tensors = read_tensors(path, wanted)
    state = {f"tables.{table}.weight": tensors[name] for table, name in names.items()}
    folded.load_state_dict(state, assign=True)
    folded.format = manifest.text_format
    return folded


def _load_trained(directory: Path, manifest: Manifest) -> SoftPrompt:
    path = directory / TRAINING
    prompt = _blank(manifest.spec, manifest, path)
    wanted = {name: tuple(tensor.shape) for name, tensor in prompt.state_dict().items()}
    _check_shapes(path, read_shapes(path), wanted)
    tensors = read_tensors(path, wanted)
    if digest_tensors(tensors) != manifest.training_digest:
        raise ArtifactError(f"{path} is not what {MANIFEST} says (training digest differs); {REFETCH}")
    prompt.load_state_dict(tensors, assign=True)
    return prompt


def _blank(spec: PromptSpec, manifest: Manifest, path: Path) -> SoftPrompt:
    try:
        return blank_prompt(spec, restore_geometry(manifest.geometry), path.parent / MANIFEST)
    except (PromptError, RuntimeError, OverflowError, TypeError) as error:
        text = " ".join(str(error).split())
        raise ArtifactError(f"{path.parent / MANIFEST}: spec and geometry make no prompt ({text}); {REFETCH}") from None


def _check_shapes(path: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    for name, shape in wanted.items():
        if name not in found:
            raise ArtifactError(f"{path} lacks tensor {name!r}; {REFETCH}")
        if found[name] != shape:
            raise ArtifactError(f"{path}: tensor {name!r} is {list(found[name])}, must be {list(shape)}; {REFETCH}")


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()}


def pack_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Return a safetensors file of the tensors in float32, with the metadata that Transformers and PEFT look for."""
    return safetensors.torch.save(_detached(tensors), metadata={"format": "pt"})
