"""Convert between the two forms of artefact, ours and PEFT's."""

import json
from pathlib import Path
from typing import Literal

from foreword.artifact.directory import PEFT_CONFIG, WEIGHTS, write_directory
from foreword.artifact.format import PEFT_TENSOR
from foreword.artifact.peft import peft_config, why_not_peft
from foreword.artifact.store import load_prompt, pack_tensors, save_prompt
from foreword.backbone import Backbone
from foreword.errors import ArtifactError, nearest


def convert(
    source: str | Path,
    target: str | Path,
    to: Literal["peft", "foreword"] = "foreword",
    backbone: Backbone | None = None,
) -> Path:
    """Write the prompt at `source` to the directory `target` in the other form and return that directory.

    `peft` gives PEFT's two files alone (an artefact of ours already holds them; this leaves out the rest).
    `foreword` gives an artefact of ours, with the backbone's fingerprint if `backbone` is passed.

    Args:
        source: a directory or hub id, of either form.
        target: a directory to be made, or an older artefact to be replaced.
        to: the form wanted.
        backbone: what the prompt belongs to; needed for PEFT prefixes whose config has no geometry.

    Raises:
        ArtifactError: the source does not load, PEFT cannot serve the prompt, `target` holds other things, or it is
            the source and the form keeps less.
    """
    if to not in ("peft", "foreword"):
        raise ArtifactError(f"to = {to!r} is not a form of artefact{nearest(to, ('peft', 'foreword'))}")
    if to == "peft" and Path(source).expanduser().resolve() == Path(target).expanduser().resolve():
        raise ArtifactError(f"{target} is the source too, and PEFT's files keep less; give another directory")
    prompt = load_prompt(source, backbone, unfolded=to == "foreword")
    if to == "foreword":
        return save_prompt(prompt, target, backbone)
    reason = why_not_peft(prompt, prompt.meta.get("num_layers"))
    if reason is not None:
        raise ArtifactError(f"prompt {str(source)!r} cannot become PEFT's: {reason}")
    (table,) = prompt.tables
    config = peft_config(prompt, prompt.meta.get("source") or "")
    files = {
        WEIGHTS: pack_tensors({PEFT_TENSOR: prompt.table(table)}),
        PEFT_CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
    }
    return write_directory(Path(target), files)
