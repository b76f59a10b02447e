"""Export: every leading foreword of a store as a prefix file that vLLM's workers read, and an index of them by name."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword.artifact.directory import MANIFEST, PEFT_CONFIG
from foreword.artifact.format import read_json
from foreword.artifact.store import load_prompt
from foreword.backbone import Backbone
from foreword.engines.prefix_files import LayerStates, PrefixFile, pack_prefix, write_prefix, write_whole
from foreword.errors import ArtifactError, ForewordError, PromptError
from foreword.prompts.bank import PrefixKV
from foreword.prompts.soft_prompt import Realised
from foreword.serve.catalog import TENANTS, Catalog
from foreword.serve.loading import load
from foreword.serve.tenants import LOCAL, Tenant

INDEX = "index.json"
FORMAT, VERSION = "foreword.vllm-index", 1


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        files: by name; a tenant's own forewords are named `tenant/name`.
        refused: by name, why vLLM cannot serve it.
        index: the index's path.
    """

    files: dict[str, PrefixFile] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    index: Path = Path(INDEX)


def export_vllm(source: str | Path, backbone: Backbone, folder: str | Path) -> Exported:
    """Write prefix files of one artefact, or of all forewords of a store, and return what was written and what not.

    Files of earlier exports stay: a running vLLM may still read them. Their names stay in the index until a foreword
    of the same name takes their place.

    Args:
        source: an artefact's directory or hub id, or a store as `foreword serve` has it.
        backbone: what they belong to; its dtype is that of the files.
        folder: to be made, or one of earlier exports for this backbone.

    Raises:
        ArtifactError, PromptError: a single artefact does not load, is another backbone's, or does not lead its text;
            nothing at all could be exported; the folder holds another backbone's files or cannot be written.
    """
    folder = Path(folder).expanduser()
    index = _read_index(folder, backbone)
    made, records = Exported(index=folder / INDEX), {}
    found = dict(_found(source))
    if not found:
        raise ArtifactError(f"store {str(source)!r} holds no foreword; give an artefact or a directory of artefacts")
    for name, path in found.items():
        try:
            prompt = load_prompt(path, backbone)
            made.files[name] = export_one(load(prompt, backbone)[1], backbone, folder)
            records[name] = {**made.files[name].record(), "text_format": prompt.format}
        except ForewordError as error:
            if len(found) == 1:
                raise
            made.refused[name] = str(error)
    if not made.files:
        name, why = next(iter(made.refused.items()))
        raise PromptError(f"none of {len(found)} forewords can be exported; {name}: {why}")
    index["prefixes"] |= records
    write_whole(made.index, (json.dumps(index, indent=2, sort_keys=True) + "\n").encode())
    return made


def export_one(prompt: Realised, backbone: Backbone, folder: Path) -> PrefixFile:
    """Write the prefix file of a foreword in its served form, and return its description.

    Raises:
        PromptError: it stands inside the text, or not at every layer, so it is no prefix that vLLM's cache can hold.
        ArtifactError: the file cannot be written.
    """
    layers = _layers(prompt, backbone)
    file, content = pack_prefix(layers, placeholder_of(backbone), prompt.prefix.includes_bos)
    write_prefix(folder, file, content)
    return file


def placeholder_of(backbone: Backbone) -> int:
    """Return the token id that stands for virtual tokens: never read as text, and best one that no text has.

    vLLM counts it where it penalises repetition, so it should not be a word: an embedding row that the tokenizer
    does not use, else padding, else the unknown token, else id 0.
    """
    rows = backbone.model.get_input_embeddings().weight.shape[0]
    tokenizer = backbone.tokenizer
    if rows > len(tokenizer):
        return rows - 1
    spare = (tokenizer.pad_token_id, tokenizer.unk_token_id)
    return next((token for token in spare if token is not None and token != tokenizer.eos_token_id), 0)


def _layers(prompt: Realised, backbone: Backbone) -> list[LayerStates]:
    """Return keys and values [P, K, D] of every layer."""
    if backbone.is_encoder_decoder:
        raise PromptError(f"backbone {backbone.source!r} is an encoder-decoder; the vLLM export is for decoders only")
    if prompt.inline is not None or prompt.prefix is None:
        raise PromptError(f"it stands inside the text (placement {prompt.where!r}), so no prefix equals it; vLLM "
                          "serves leading prompts only, `foreword serve` serves this one")
    prefix, sites = prompt.prefix, backbone.geometry.sites
    missing = [layer for stack, layer in sites if (stack, layer) not in prefix.states]
    if missing:
        raise PromptError(f"it has no keys and values at layer {missing[0]}; vLLM's cache holds a prefix at every "
                          "layer or none, `foreword serve` serves this one")
    _check_window(prefix, backbone)
    pairs = [prefix.states[site] for site in sites]
    return [(key.transpose(0, 1), value.transpose(0, 1)) for key, value in pairs]


def _check_window(prefix: PrefixKV, backbone: Backbone) -> None:
    windows = {shape.window for shape in backbone.geometry.sites.values()} - {None}
    if prefix.always_visible and windows:
        raise PromptError(f"window = 'always' keeps it visible outside the sliding window of {min(windows)} tokens, "
                          "which vLLM cannot; train it with window = 'model'")


def _found(source: str | Path) -> Iterator[tuple[str, Path]]:
    """Yield names and directories: of the one artefact, or of every foreword of every owner in a store."""
    path = Path(source).expanduser()
    if not path.is_dir() or any((path / name).is_file() for name in (MANIFEST, PEFT_CONFIG)):
        yield path.name, path
        return
    catalog = Catalog(path, "")
    for key in sorted(catalog.stamps()):
        owner, _, name = key.partition("/")
        home = path / name if owner == LOCAL else path / TENANTS / owner / name
        with contextlib.suppress(ForewordError):  # damaged: loading it says how
            home = catalog.resolve(Tenant(name=owner), name).path
        yield (name if owner == LOCAL else key), home


def _read_index(folder: Path, backbone: Backbone) -> dict[str, Any]:
    """Return the index of earlier exports, or an empty one.

    Raises:
        ArtifactError: it is of another backbone, dtype or version.
    """
    head = {"format": FORMAT, "version": VERSION, "backbone": backbone.fingerprint,
            "dtype": str(backbone.dtype).removeprefix("torch.")}
    path = folder / INDEX
    if not path.is_file():
        return {**head, "prefixes": {}}
    index = read_json(path)
    for key, value in head.items():
        if index.get(key) != value:
            found = f"{path} has {key} = {index.get(key)!r}"
            raise ArtifactError(f"{found}, this export has {value!r}; give a new directory")
    if not isinstance(index.get("prefixes"), dict):
        raise ArtifactError(f"{path} has no table of prefixes; give a new directory")
    return index
