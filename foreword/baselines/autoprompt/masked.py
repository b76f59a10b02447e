"""Masked language models (BERT, RoBERTa), frozen, in the shape of a backbone that takes written words alone."""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from foreword.backbone import DTYPES, Backbone, bundled_backbones
from foreword.errors import BackboneError
from foreword.geometry import Geometry


class MaskedBackbone(Backbone):
    """A frozen masked language model: it fills one mask token. No soft prompt enters it, so it has no sites."""


def is_masked(source: str, **options: Any) -> bool:
    """Return whether a saved model says that it is a masked language model.

    Args:
        source: a directory, or a hub id.
        options: `revision` and `trust_remote_code`, as `load_backbone` takes them.
    """
    if source in bundled_backbones():
        return False
    try:
        config = AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError):
        return False  # loading reports the fault better
    return any(name.endswith("ForMaskedLM") for name in config.architectures or ())


def load_masked(
    source: str | Path,
    *,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str | torch.device | None = None,
    **options: Any,
) -> MaskedBackbone:
    """Return a frozen masked language model from a directory or a hub id.

    Args:
        source: where it is.
        dtype: compute dtype.
        device: where to put it; None takes CUDA if there is one.
        options: `revision` and `trust_remote_code`.

    Raises:
        BackboneError: nothing loadable there, or no mask token.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForMaskedLM.from_pretrained(source, dtype=DTYPES[dtype], **options).to(device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise BackboneError(f"backbone {str(source)!r} cannot be loaded: {' '.join(str(error).split())}") from error
    files = tuple(sorted(Path(source).glob("*.safetensors"))) if Path(source).is_dir() else ()
    return wrap_masked(model, tokenizer, source=str(source), weight_files=files)


def wrap_masked(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str = "",
    weight_files: tuple[Path, ...] = (),
) -> MaskedBackbone:
    """Return a frozen masked backbone around a model in memory.

    Raises:
        BackboneError: the tokenizer has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise BackboneError(f"backbone {source!r}: its tokenizer has no mask token to answer at; set one")
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    limit = getattr(model.config, "max_position_embeddings", None)
    geometry = Geometry({}, model.get_input_embeddings().weight.shape[1], False, limit)
    return MaskedBackbone(model, tokenizer, geometry, source or model.config.name_or_path, weight_files)
