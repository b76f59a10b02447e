"""What a foreword's files say before any tensor of them is read, and how they become what the model takes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foreword.artifact.directory import MANIFEST
from foreword.artifact.format import (
    blank_prompt,
    content_digest,
    digest_tensors,
    find_weights,
    read_manifest,
    read_shapes,
    restore_geometry,
)
from foreword.artifact.store import load_prompt
from foreword.backbone import Backbone
from foreword.errors import ArtifactError, PromptError
from foreword.prompts.bank import PrefixKV, States
from foreword.prompts.soft_prompt import Realised, SoftPrompt

Source = Path | SoftPrompt | PrefixKV
"""A saved foreword's directory, or one in memory (which is also what it is loaded from again)."""


@dataclass(frozen=True)
class Facts:
    """What is known of a foreword without its tensors: see pool.ForewordInfo."""

    version: str
    kind: str
    length: int
    num_bytes: int
    text_format: str | None


def read_facts(source: Source, backbone: Backbone, longest: int, most_bytes: int) -> Facts:
    """Return what a source says of itself, once it is found to fit the backbone and the limits.

    Of our own directories only the manifest and the tensors' header are read; PEFT's, which have no manifest, are
    loaded whole.

    Raises:
        ArtifactError: damaged, or not what its own manifest says.
        PromptError: another backbone's, or larger than the limits.
    """
    if isinstance(source, PrefixKV):
        facts = Facts(_prefix_digest(source), "prefix", source.length, source.num_bytes, None)
        _check_widths(source, backbone)
    elif isinstance(source, SoftPrompt):
        source.check_backbone(backbone)
        facts = _facts(source, backbone, content_digest(source))
    elif (source / MANIFEST).is_file():
        facts = _manifest_facts(source, backbone)
    else:
        prompt = load_prompt(source, backbone)
        facts = _facts(prompt, backbone, content_digest(prompt))
    if facts.length > longest:
        raise PromptError(f"foreword has {facts.length} virtual tokens, this server takes {longest}; use a shorter one")
    if facts.num_bytes > most_bytes:
        raise PromptError(
            f"foreword takes {facts.num_bytes:,} bytes, the pool's budget is {most_bytes:,}; raise the budget"
        )
    return facts


def load(source: Source, backbone: Backbone) -> tuple[str, Realised]:
    """Return a source's content digest, and the foreword in the one form that is served.

    Leading prompts on a decoder are compiled to prefixes here; what is among the text stays embeddings.

    Raises:
        ArtifactError, PromptError: damaged, gone, not finite, or another backbone's.
    """
    if isinstance(source, PrefixKV):
        return _prefix_digest(source), Realised(prefix=_dense(source, backbone))
    prompt = load_prompt(source, backbone) if isinstance(source, Path) else source
    digest = prompt.meta.get("digest") if isinstance(source, Path) else None
    digest = digest or content_digest(prompt)
    with torch.no_grad():
        made = _evaluating(prompt, backbone)
    inline = None if made.inline is None else made.inline.detach().to(backbone.device, backbone.dtype)
    prefix = None if made.prefix is None else _dense(made.prefix, backbone)
    return digest, Realised(prefix, inline, made.where)


def served_bytes(prompt: Realised) -> int:
    """Return the bytes that a foreword takes in memory."""
    inline = 0 if prompt.inline is None else prompt.inline.numel() * prompt.inline.element_size()
    return inline + (0 if prompt.prefix is None else prompt.prefix.num_bytes)


def _evaluating(prompt: SoftPrompt, backbone: Backbone) -> Realised:
    if not prompt.training:
        return prompt.realise(backbone)
    folded = prompt.fold()  # never switch a caller's own prompt between modes: it may be in training
    return folded.eval().realise(backbone)


def _manifest_facts(directory: Path, backbone: Backbone) -> Facts:
    manifest = read_manifest(directory / MANIFEST)
    prompt = blank_prompt(manifest.spec, restore_geometry(manifest.geometry), directory / MANIFEST)
    prompt.fingerprint, prompt.format = manifest.backbone.fingerprint, manifest.text_format
    prompt.check_backbone(backbone)
    stored = sum(_numbers(shape) for shape in read_shapes(find_weights(directory)).values())
    if stored != prompt.num_stored:
        raise ArtifactError(
            f"{directory} holds {stored:,} numbers, its manifest says {prompt.num_stored:,}; fetch or save it again"
        )
    return _facts(prompt, backbone, manifest.digest)


def _numbers(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _facts(prompt: SoftPrompt, backbone: Backbone, version: str) -> Facts:
    """Return the facts of a prompt; its bytes are those of the form that is served, not of the file."""
    spec, geometry = prompt.spec, backbone.geometry
    compiled = spec.kind == "prompt" and spec.is_leading and geometry.sites and not geometry.is_encoder_decoder
    length = spec.length + (spec.placement == "after_bos" if compiled else 0)
    numbers = prompt.num_stored
    if compiled:
        numbers = length * sum(shape.width for shape in geometry.sites.values())
    itemsize = torch.empty(0, dtype=backbone.dtype).element_size()
    return Facts(version, spec.kind, length, numbers * itemsize, prompt.format)


def _check_widths(prefix: PrefixKV, backbone: Backbone) -> None:
    for site, (key, value) in prefix.states.items():
        shape = backbone.geometry.sites.get(site)
        found = (key.shape[0], key.shape[2], value.shape[2])
        if shape is None or found != shape.widths or key.shape[1] != prefix.length:
            raise PromptError(f"prefix at {site} has shape {list(key.shape)}, which does not fit {backbone.source!r}")


def _prefix_digest(prefix: PrefixKV) -> str:
    tensors = {
        f"{group}.{'.'.join(map(str, site))}.{part}": pair[i].detach().float().contiguous()
        for group, states in (("prefix", prefix.states), ("infix", prefix.infix))
        for site, pair in states.items()
        for i, part in enumerate(("key", "value"))
    }
    return digest_tensors(tensors, f"{prefix.length} {prefix.always_visible} {prefix.includes_bos}")


def _dense(prefix: PrefixKV, backbone: Backbone) -> PrefixKV:
    """Return a prefix with every site's keys and values in memory of their own, as products read them fastest."""

    def own(states: States) -> States:
        return {site: (_copied(key, backbone), _copied(value, backbone)) for site, (key, value) in states.items()}

    fields = {name: getattr(prefix, name) for name in ("length", "infix_length", "always_visible", "includes_bos")}
    return PrefixKV(own(prefix.states), infix=own(prefix.infix), **fields)


def _copied(states: Tensor, backbone: Backbone) -> Tensor:
    return states.detach().to(backbone.device, backbone.dtype).clone(memory_format=torch.contiguous_format)


__all__ = ["Facts", "Source", "load", "read_facts", "served_bytes"]
