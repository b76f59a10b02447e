"""The file format: what the manifest `foreword.json` holds, how tensors are named, and the content digest.

docs/FORMAT.md describes it for readers of the files; this module is the one place that knows it.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from foreword.artifact.directory import WEIGHTS
from foreword.config import build, to_dict
from foreword.errors import ArtifactError, ConfigError
from foreword.geometry import Geometry, SiteShape
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.prompts.spec import PromptSpec, Stack

FORMAT = "foreword.prompt"
BASELINE_FORMAT = "foreword.baseline"  # of foreword/baselines/saved.py, told apart here from a damaged prompt
VERSION = 1
PEFT_TENSOR = "prompt_embeddings"
OWN_PREFIX = "foreword."
LONGEST_JSON = 16 << 20  # bytes; a manifest is some kilobytes, so more is damage or malice
MOST_NUMBERS = 1 << 36  # 2^36 floats are 256 GiB: no prompt is that large


@dataclass(frozen=True)
class SiteRecord:
    """One attention site of the backbone's geometry (backbone.SiteShape with its place)."""

    stack: Stack
    layer: int
    kv_heads: int
    key_width: int
    value_width: int
    window: int | None = None


@dataclass(frozen=True)
class GeometryRecord:
    """The backbone's geometry, so that an artefact loads without the backbone."""

    embed_width: int
    is_encoder_decoder: bool
    max_positions: int | None = None
    sites: tuple[SiteRecord, ...] = ()


@dataclass(frozen=True)
class BackboneRecord:
    """Which backbone the prompt belongs to: where it came from, and sha256 of config, tokenizer and weights.

    `num_layers` counts all layers, also those without attention (PEFT's files count them); None if not known.
    """

    source: str = ""
    fingerprint: dict[str, str] | None = None
    num_layers: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What `foreword.json` holds.

    Attributes:
        format: always `foreword.prompt`.
        version: of the format; a reader refuses a newer one.
        spec: the prompt's form as it was trained (with the MLP, if it had one).
        geometry: of the backbone.
        backbone: where the backbone came from, and its fingerprint.
        digest: `content_digest` of the served prompt.
        training_digest: of the tensors in `training.safetensors`; None without that file.
        text_format: name of the text format (data.examples) the prompt was trained with, None for plain text.
        recipe: the resolved training configuration.
        data_digest: of the training data.
        scores: whatever was measured.
        libraries: versions that wrote the file.
    """

    spec: PromptSpec
    geometry: GeometryRecord
    backbone: BackboneRecord
    digest: str
    training_digest: str | None = None
    text_format: str | None = None
    recipe: dict[str, Any] | None = None
    data_digest: str | None = None
    scores: dict[str, Any] | None = None
    libraries: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT
    version: int = VERSION

    def to_json(self) -> str:
        """Return the manifest as JSON text; the same manifest always gives the same text."""
        head = {"format": self.format, "version": self.version}
        return json.dumps({**head, **to_dict(self)}, indent=2, allow_nan=False) + "\n"


def record_geometry(geometry: Geometry) -> GeometryRecord:
    """Return a geometry in the form the manifest keeps."""
    sites = (SiteRecord(*site, *dataclasses.astuple(shape)) for site, shape in geometry.sites.items())
    return GeometryRecord(geometry.embed_width, geometry.is_encoder_decoder, geometry.max_positions, tuple(sites))


def restore_geometry(record: GeometryRecord) -> Geometry:
    """Return the geometry that a manifest keeps.

    Raises:
        ArtifactError: a width or count that is not positive, or a site named twice.
    """
    sites = {}
    for site in record.sites:
        sizes = (site.kv_heads, site.key_width, site.value_width)
        if min(sizes) < 1 or site.layer < 0 or (site.stack, site.layer) in sites:
            raise ArtifactError(f"geometry.sites has a bad entry for {site.stack} layer {site.layer}; {REFETCH}")
        sites[site.stack, site.layer] = SiteShape(*sizes, site.window)
    if record.embed_width < 1:
        raise ArtifactError(f"geometry.embed_width = {record.embed_width} is not positive; {REFETCH}")
    return Geometry(sites, record.embed_width, record.is_encoder_decoder, record.max_positions)


REFETCH = "the file is damaged, fetch or save it again"


def read_manifest(path: Path) -> Manifest:
    """Return the manifest in a file.

    Raises:
        ArtifactError: not JSON, of another format, of a newer version, or a field is unknown, missing or wrong.
    """
    tree = read_json(path)
    if tree.get("format") == BASELINE_FORMAT:
        raise ArtifactError(f"{path.parent} holds a {tree.get('method')}, no soft prompt; give a prompt's directory")
    if tree.get("format") != FORMAT:
        raise ArtifactError(f"{path}: format = {tree.get('format')!r} is not {FORMAT!r}; {REFETCH}")
    version = tree.get("version")
    if not isinstance(version, int) or version != VERSION:
        raise ArtifactError(f"{path}: format version {version!r} is unknown, this Foreword reads {VERSION}; upgrade it")
    try:
        return build(Manifest, tree)
    except (ConfigError, TypeError) as error:
        raise ArtifactError(f"{path}: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file of sane size.

    Raises:
        ArtifactError: missing, too large, not JSON, or not a mapping.
    """
    try:
        if path.stat().st_size > LONGEST_JSON:
            raise ArtifactError(f"{path} has {path.stat().st_size:,} bytes, far too many; {REFETCH}")
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); give the directory of a saved prompt") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({' '.join(str(error).split())}); {REFETCH}") from None
    if not isinstance(tree, dict):
        raise ArtifactError(f"{path} holds {type(tree).__name__}, not a mapping; {REFETCH}")
    return tree


def find_weights(directory: Path) -> Path:
    """Return the path of the directory's tensors.

    Raises:
        ArtifactError: there are none, or only a pickle, which could run code.
    """
    path = directory / WEIGHTS
    if path.is_file():
        return path
    pickles = sorted(p.name for suffix in ("bin", "pt", "pth", "ckpt") for p in directory.glob(f"*.{suffix}"))
    if pickles:
        raise ArtifactError(
            f"{directory / pickles[0]} is a pickle, which can run code when read, so it is refused; write it again "
            "as safetensors (PEFT: save_pretrained(..., safe_serialization=True))"
        )
    raise ArtifactError(f"{directory} lacks {WEIGHTS}; {REFETCH}")


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a safetensors file from its header alone; nothing is allocated.

    Raises:
        ArtifactError: missing, truncated, or not safetensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({' '.join(str(error).split())}); {REFETCH}") from None


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the named tensors in float32 (which holds every bfloat16 and float16 value exactly).

    Raises:
        ArtifactError: one has NaN or infinite values, or is not floating-point.
    """
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for name in names:
            tensor = file.get_tensor(name)
            if not tensor.is_floating_point():
                raise ArtifactError(f"{path}: tensor {name!r} is {tensor.dtype}, not floating-point; {REFETCH}")
            # A copy, as the file's bytes may lie unaligned, and matrix products then differ in the last bit.
            tensors[name] = tensor.to(torch.float32, copy=True)
    check_finite(tensors, path)
    return tensors


def check_finite(tensors: dict[str, Tensor], where: object) -> None:
    """Raise where a tensor has NaN or infinite values.

    Raises:
        ArtifactError: it names the tensor.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{where}: tensor {name!r} has NaN or infinite values; train or fetch it again")


def blank_prompt(spec: PromptSpec, geometry: Geometry, where: object) -> SoftPrompt:
    """Return a prompt without storage (meta tensors), whose shapes a file can be checked against.

    Raises:
        ArtifactError: its tables would be larger than any prompt is, or it has none.
    """
    width = sum(shape.width for shape in geometry.sites.values()) + geometry.embed_width
    if (spec.length + spec.reparam_width) * width > MOST_NUMBERS:
        raise ArtifactError(
            f"{where}: length = {spec.length} or reparam_width = {spec.reparam_width} is larger than any prompt's"
        )
    with torch.device("meta"):
        prompt = SoftPrompt(spec, geometry)
    if not prompt.num_stored:
        raise ArtifactError(f"{where}: a {spec.kind} without any attention site holds nothing; {REFETCH}")
    return prompt


def tensor_names(prompt: SoftPrompt, in_peft_form: bool) -> dict[str, str]:
    """Return the tensor name of each table: PEFT's where PEFT can serve the prompt, else names it cannot mistake."""
    if in_peft_form:
        (table,) = prompt.tables
        return {table: PEFT_TENSOR}
    return {table: OWN_PREFIX + table for table in prompt.tables}


def content_digest(prompt: SoftPrompt) -> str:
    """Return the sha256 of what the prompt does: the served (folded) tensors, its form, and its text format.

    The MLP, the recipe and the scores are not in it: two prompts with one digest serve the same.
    """
    prompt = prompt.fold() if prompt.spec.reparam != "none" else prompt
    geometry, spec = prompt.geometry, prompt.spec
    form = {
        "kind": spec.kind,
        "length": spec.length,
        "placement": spec.placement,
        "window": spec.window,
        "text_format": prompt.format,
        "sites": [[*site, *geometry.sites[site].widths] for site in prompt.sites],
        "is_encoder_decoder": geometry.is_encoder_decoder,
    }
    tensors = {name: prompt.table(name).detach().float() for name in prompt.tables}
    return digest_tensors(tensors, json.dumps(form, sort_keys=True))


def digest_tensors(tensors: dict[str, Tensor], form: str = "") -> str:
    """Return the sha256 of named tensors (name, shape, dtype, bytes, in name order) after `form`."""
    digest = hashlib.sha256(form.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}:{tuple(tensor.shape)}:{tensor.dtype}\0".encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def content_name(prompt: SoftPrompt) -> str:
    """Return a directory name that tells the kind, the length and the content: `prefix-10-1f0c5a2b9d3e`."""
    return f"{prompt.spec.kind}-{prompt.length}-{content_digest(prompt)[:12]}"


def plain(value: Any) -> Any:
    """Return `value` as JSON and YAML can hold it: tensors and arrays as numbers, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
