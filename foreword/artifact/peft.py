"""PEFT's files (0.21): write the config where PEFT serves the prompt rightly, read what PEFT wrote.

PEFT keeps one tensor `prompt_embeddings`: [P, E] input embeddings, or a prefix [P, 2 * L * K * D] in which layer l's
keys are slot 2l and its values slot 2l + 1 of the view [P, 2L, K, D], keys as they enter the cache.
"""

import logging
from pathlib import Path
from typing import Any

from foreword.artifact.directory import PEFT_CONFIG, WEIGHTS
from foreword.artifact.format import (
    PEFT_TENSOR,
    REFETCH,
    blank_prompt,
    find_weights,
    read_json,
    read_shapes,
    read_tensors,
)
from foreword.backbone import Backbone
from foreword.errors import ArtifactError
from foreword.geometry import Geometry, SiteShape
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.prompts.spec import PromptSpec

KINDS = {"PREFIX_TUNING": "prefix", "CARTRIDGE": "prefix", "PROMPT_TUNING": "prompt", "P_TUNING": "prompt"}
TASKS = {"CAUSAL_LM": False, "SEQ_2_SEQ_LM": True}  # task type -> whether the backbone is an encoder-decoder
ENCODER_DECODER_PREFIX = (
    "PEFT's prefix for encoder-decoders stands in decoder self-attention only, as past text with positions, and for "
    "an even number of layers its layers i and i + L/2 share one half of the tensor while the other half is dead; no "
    "prefix of ours equals it: train it again with Foreword, whose three prefixes are all alive"
)


def why_not_peft(prompt: SoftPrompt, num_layers: int | None = None) -> str | None:
    """Return why PEFT cannot serve this prompt rightly, or None where it can.

    Args:
        prompt: of any kind.
        num_layers: of the backbone, those without attention included; None if not known.
    """
    spec, shapes = prompt.spec, [prompt.geometry.sites[site] for site in prompt.sites]
    if spec.kind == "infix":
        return "PEFT has no infix"
    if spec.placement != "start":
        return f"PEFT puts every prompt at the start, this one's placement is {spec.placement!r}"
    if spec.window == "always" and any(shape.window for shape in prompt.geometry.sites.values()):
        return "PEFT cannot keep a prefix visible outside a sliding window (window = 'always')"
    if spec.kind == "prompt":
        return None
    if prompt.geometry.is_encoder_decoder:
        return "PEFT's prefix for encoder-decoders is another method (decoder self-attention only, half of it dead)"
    if prompt.sites != list(prompt.geometry.sites):
        return "PEFT has no choice of layers"
    if len({shape.widths for shape in shapes}) != 1:
        return "PEFT takes one key/value shape for all layers"
    if shapes[0].key_width != shapes[0].value_width:
        return "PEFT takes keys and values of one width"
    if num_layers is not None and num_layers != len(shapes):
        return f"PEFT counts all {num_layers} layers, of which {len(shapes)} have attention"
    return None


def peft_config(prompt: SoftPrompt, source: str) -> dict[str, Any]:
    """Return the `adapter_config.json` with which PEFT loads the prompt's tensors.

    Args:
        prompt: one for which `why_not_peft` gives None.
        source: path or hub id of the backbone, which PEFT's Auto classes load.
    """
    is_encoder_decoder = prompt.geometry.is_encoder_decoder
    config: dict[str, Any] = {
        "auto_mapping": None,
        "base_model_name_or_path": source or None,
        "inference_mode": True,
        "modules_to_save": None,
        "num_transformer_submodules": 1,  # on an encoder-decoder PEFT's default of 2 adds rows that it never reads
        "num_virtual_tokens": prompt.length,
        "revision": None,
        "task_type": "SEQ_2_SEQ_LM" if is_encoder_decoder else "CAUSAL_LM",
    }
    if prompt.spec.kind == "prompt":
        sites = list(prompt.geometry.sites.values())
        heads = {"num_attention_heads": sites[0].kv_heads, "num_layers": len(sites)} if sites else {}
        embedding = {"peft_type": "PROMPT_TUNING", "token_dim": prompt.geometry.embed_width}
        return {**config, **embedding, **heads, "prompt_tuning_init": "RANDOM", "tokenizer_name_or_path": None}
    shape = prompt.geometry.sites[prompt.sites[0]]
    return {
        **config,
        "peft_type": "PREFIX_TUNING",
        "num_layers": len(prompt.sites),
        "num_attention_heads": shape.kv_heads,
        "token_dim": shape.kv_heads * shape.key_width,
        "prefix_projection": False,
        "encoder_hidden_size": None,
    }


def read_peft(directory: Path, backbone: Backbone | None = None) -> SoftPrompt:
    """Return the prompt in a directory that PEFT wrote: PREFIX_TUNING, CARTRIDGE, PROMPT_TUNING or P_TUNING.

    Values are equal to the file's (bfloat16 is widened). `meta["notes"]` says what was left out, if anything.

    Args:
        directory: with `adapter_config.json` and `adapter_model.safetensors`.
        backbone: gives the geometry of a prefix where the config lacks it.

    Raises:
        ArtifactError: another PEFT type or task, a pickle file, trained weights besides the prompt, wrong shapes.
    """
    config = read_json(directory / PEFT_CONFIG)
    where = directory / PEFT_CONFIG
    kind = _kind(config, where)
    length = _whole_number(config, "num_virtual_tokens", where)
    is_encoder_decoder = _is_encoder_decoder(config, backbone, where)
    if kind == "prefix" and is_encoder_decoder:
        raise ArtifactError(f"{where}: {ENCODER_DECODER_PREFIX}")
    rows, width = _tensor_shape(directory)
    spec = PromptSpec(kind=kind, length=length)
    if backbone is not None:
        geometry = backbone.geometry
    elif kind == "prompt":
        geometry = Geometry({}, width, is_encoder_decoder, None)
    else:
        geometry = _prefix_geometry(config, where)
    prompt = blank_prompt(spec, geometry, where)
    return _fill(prompt, "embedding" if kind == "prompt" else "decoder", directory, (rows, width), config)


def _fill(
    prompt: SoftPrompt, table: str, directory: Path, shape: tuple[int, int], config: dict[str, Any]
) -> SoftPrompt:
    """Put the file's live rows into the prompt, and say what was left out."""
    length, wanted = prompt.length, prompt.table(table).shape[1]
    notes, twice = [], prompt.geometry.is_encoder_decoder and shape[0] == 2 * length
    if shape[1] != wanted or (shape[0] != length and not twice):
        raise ArtifactError(
            f"{directory / WEIGHTS}: tensor {PEFT_TENSOR!r} is {list(shape)}, must be {[length, wanted]} for this "
            "config and backbone; load the backbone that the prompt was learned on"
        )
    values = read_tensors(directory / WEIGHTS, [PEFT_TENSOR])[PEFT_TENSOR]
    if twice:
        notes.append(f"rows {length} to {2 * length - 1} left out: PEFT stores them but never reads them")
        logging.getLogger("foreword").warning("%s: %s", directory, notes[0])
    state = {f"tables.{table}.weight": values[:length].contiguous()}
    prompt.load_state_dict(state, assign=True)
    prompt.meta = {"source": config.get("base_model_name_or_path") or "", "notes": notes}
    return prompt


def _kind(config: dict[str, Any], where: Path) -> str:
    peft_type = config.get("peft_type")
    if peft_type not in KINDS:
        known = ", ".join(KINDS)
        raise ArtifactError(f"{where}: peft_type = {peft_type!r} is no soft prompt that can be read; readable: {known}")
    if config.get("modules_to_save"):
        raise ArtifactError(
            f"{where}: modules_to_save = {config['modules_to_save']!r}: trained layers belong to this prompt, and a "
            "frozen backbone has none; load it with PEFT"
        )
    return KINDS[peft_type]


def _is_encoder_decoder(config: dict[str, Any], backbone: Backbone | None, where: Path) -> bool:
    task = config.get("task_type")
    if task is not None and task not in TASKS:
        raise ArtifactError(f"{where}: task_type = {task!r} is not a language model's; readable: {', '.join(TASKS)}")
    if backbone is not None:
        if task is not None and TASKS[task] != backbone.is_encoder_decoder:
            raise ArtifactError(f"{where}: task_type = {task!r} is for another kind of model than {backbone.source!r}")
        return backbone.is_encoder_decoder
    if task is None and config.get("num_transformer_submodules") is None:
        raise ArtifactError(f"{where}: task_type is missing; pass the backbone, which tells the kind of model")
    return TASKS[task] if task is not None else config["num_transformer_submodules"] == 2


def _tensor_shape(directory: Path) -> tuple[int, int]:
    """Return [rows, width] of the prompt's tensor, the only one that the file may hold."""
    shapes = read_shapes(find_weights(directory))
    if PEFT_TENSOR not in shapes:
        raise ArtifactError(f"{directory / WEIGHTS} lacks tensor {PEFT_TENSOR!r}; {REFETCH}")
    if others := sorted(set(shapes) - {PEFT_TENSOR}):
        raise ArtifactError(
            f"{directory / WEIGHTS} also holds {others[0]!r}, trained weights that a frozen backbone has no place for; "
            "load it with PEFT"
        )
    if len(shapes[PEFT_TENSOR]) != 2:
        raise ArtifactError(f"{directory / WEIGHTS}: {PEFT_TENSOR!r} is {list(shapes[PEFT_TENSOR])}, must be [P, W]")
    return shapes[PEFT_TENSOR]


def _prefix_geometry(config: dict[str, Any], where: Path) -> Geometry:
    """Return what the config tells of the backbone: layers, heads and head width; the rest stays unknown."""
    names = ("num_layers", "num_attention_heads", "token_dim")
    if missing := [name for name in names if config.get(name) is None]:
        raise ArtifactError(f"{where} lacks {', '.join(missing)}; pass the backbone, which tells the prefix's shape")
    layers, heads, width = (_whole_number(config, name, where) for name in names)
    if width % heads or layers > 10_000:
        raise ArtifactError(f"{where}: {layers} layers with token_dim {width} in {heads} heads cannot be; {REFETCH}")
    shape = SiteShape(heads, width // heads, width // heads)
    return Geometry({("decoder", layer): shape for layer in range(layers)}, width, False, None)


def _whole_number(config: dict[str, Any], name: str, where: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArtifactError(f"{where}: {name} = {value!r} must be a whole number of at least 1; {REFETCH}")
    return value
