"""A soft prompt beside a LoRA adapter: rows of one batch run with a prompt, an adapter, both, or neither.

The adapter is PEFT's, attached to the frozen model by PEFT itself or Transformers (`model.load_adapter`). Each LoRA
layer takes one adapter name a row (PEFT's mixed batches); here the names reach it by hooks for the time of one call,
and outside of it the adapters are switched off, so that the model is the frozen one for everybody else.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils import logging as hf_logging

from foreword.artifact.directory import WEIGHTS
from foreword.artifact.format import read_shapes, read_tensors
from foreword.backbone import Backbone
from foreword.baselines.saved import check_belongs, is_baseline, read_baseline
from foreword.compose.ensemble import compiled
from foreword.errors import ArtifactError, MissingExtraError, PromptError, nearest
from foreword.generate import generate_ids
from foreword.generate.offline import Prompt, make_rows
from foreword.prompts.soft_prompt import SoftPrompt

NO_ADAPTER = "__base__"
"""PEFT's name for a row that runs without an adapter."""


def attach_lora(backbone: Backbone, source: str | Path, name: str) -> None:
    """Attach a saved LoRA adapter to a backbone under a name, switched off and frozen.

    Args:
        backbone: the frozen model.
        source: a directory that PEFT wrote, or a hub id.
        name: what rows will call it.

    Raises:
        MissingExtraError: PEFT is not installed.
        ArtifactError: no adapter can be loaded from there, or the name is taken.
    """
    if name in adapters_of(backbone) or name == NO_ADAPTER:
        raise ArtifactError(f"adapter name {name!r} is taken; choose another")
    weights = Path(source) / WEIGHTS
    if is_baseline(source):
        check_belongs(read_baseline(source), backbone)
    if weights.is_file():
        read_tensors(weights, read_shapes(weights))  # whole and finite, before the model is touched
    hf_logging.disable_progress_bar()
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # its report calls all of the frozen model's own weights missing
    try:
        with warnings.catch_warnings():  # several adapters are what is meant here
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            backbone.model.load_adapter(str(source), adapter_name=name)
    except ImportError as error:
        raise MissingExtraError("LoRA adapters need PEFT; install it with `pip install peft`") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"LoRA adapter {str(source)!r} cannot be loaded: {' '.join(str(error).split())}") from error
    finally:
        hf_logging.set_verbosity(verbosity)
    backbone.model.eval()
    for parameter in backbone.model.parameters():
        parameter.requires_grad_(False)
    switch(backbone, on=False)


def adapters_of(backbone: Backbone) -> list[str]:
    """Return the names of the LoRA adapters attached to a backbone."""
    return list(dict.fromkeys(name for layer in _layers(backbone) for name in layer.lora_A))


def switch(backbone: Backbone, on: bool) -> None:
    """Switch all adapters on (rows then say which) or off."""
    for layer in _layers(backbone):
        layer.enable_adapters(on)


def generate_beside(
    backbone: Backbone,
    texts: Sequence[str],
    prompts: Sequence[Prompt] | SoftPrompt | None = None,
    adapters: Sequence[str | None] = (),
    **options: Any,
) -> list[str]:
    """Return one continuation a text, each row with its own prompt and adapter, all rows in one batch.

    A leading prompt is compiled on the frozen model, where it was learned; an adapter acts on the row's text.

    Args:
        backbone: the frozen model with adapters attached.
        texts: B texts.
        prompts: B prompts (None for none), or one for all rows.
        adapters: B names of attached adapters (None for none).
        **options: fields of Transformers' GenerationConfig.

    Raises:
        PromptError: another number of adapters than of texts, or a name that is not attached.
    """
    rows, given = make_rows(backbone, texts, prompts)
    names = _check_names(backbone, len(rows), adapters)
    ready = {id(p): compiled(p, backbone) if isinstance(p, SoftPrompt) else p for p in given}
    # `generate_ids` puts rows in this order; each name must stay with its row.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))
    with _named_rows(backbone, [names[i] for i in order]):
        made = generate_ids(backbone, [rows[i] for i in order], [ready[id(given[i])] for i in order], **options)
    texts_made = [""] * len(rows)
    for i, ids in zip(order, made, strict=True):
        text = backbone.tokenizer.decode(ids, skip_special_tokens=True)
        has_format = isinstance(given[i], SoftPrompt) and given[i].format
        texts_made[i] = text.strip() if has_format else text
    return texts_made


def _check_names(backbone: Backbone, count: int, adapters: Sequence[str | None]) -> list[str]:
    if len(adapters) != count:
        raise PromptError(f"{count} texts but {len(adapters)} adapters; give one name (or None) for each text")
    known = adapters_of(backbone)
    for name in adapters:
        if name is not None and name not in known:
            raise PromptError(f"adapter {name!r} is not attached{nearest(name, known)}")
    return [NO_ADAPTER if name is None else name for name in adapters]


def _layers(backbone: Backbone) -> list[nn.Module]:
    """Return the LoRA layers of a model."""
    return [module for module in backbone.model.modules() if hasattr(module, "lora_A") and hasattr(module, "scaling")]


@contextlib.contextmanager
def _named_rows(backbone: Backbone, names: Sequence[str]) -> Iterator[None]:
    """Let each LoRA layer take row r's adapter by name, inside; switch all off after."""

    def name_rows(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        rows = args[0].shape[0]
        if rows % len(names):
            raise PromptError(f"a pass of {rows} rows met {len(names)} adapters; batches with adapters stay whole")
        beams = rows // len(names)  # `generate` expands each row to as many neighbours
        return args, {**kwargs, "adapter_names": [name for name in names for _ in range(beams)]}

    hooks = [layer.register_forward_pre_hook(name_rows, with_kwargs=True) for layer in _layers(backbone)]
    switch(backbone, on=True)
    try:
        yield
    finally:
        switch(backbone, on=False)
        for hook in hooks:
            hook.remove()


__all__ = ["adapters_of", "attach_lora", "generate_beside", "switch"]
