"""What a prompt must fit: a model's attention sites and their shapes, read from one probing forward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foreword.errors import BackboneError
from foreword.prompts.attention import AttentionCall
from foreword.prompts.bank import Site
from foreword.prompts.inject import activate, entrances, install

KEY_CHOOSING_OPTIONS = ("indices", "block_indices", "sinks")


@dataclass(frozen=True)
class SiteShape:
    """One attention module's key/value heads K, key and value widths D, and sliding window (None: full)."""

    kv_heads: int
    key_width: int
    value_width: int
    window: int | None = None

    @property
    def widths(self) -> tuple[int, int, int]:
        """Key/value heads, key width and value width: what decides whether a prefix fits."""
        return self.kv_heads, self.key_width, self.value_width

    @property
    def width(self) -> int:
        """Numbers that one virtual token stores here: K * (D_key + D_value)."""
        return self.kv_heads * (self.key_width + self.value_width)


@dataclass(frozen=True)
class Geometry:
    """What a prompt must fit: every attention site with its shape, the embedding width E, the position limit.

    Sites come from one probing forward pass, not from the config, so grouped-query attention, head widths other
    than E / H, and T5's d_kv are read as they are. `sites` is empty where prefixes cannot enter.
    """

    sites: dict[Site, SiteShape]
    embed_width: int
    is_encoder_decoder: bool
    max_positions: int | None

    @property
    def stacks(self) -> tuple[str, ...]:
        """The kinds of attention present: `decoder`, or `encoder`, `decoder` and `cross`."""
        return tuple(dict.fromkeys(stack for stack, _ in self.sites))

    def layers(self, stack: str) -> list[int]:
        """Return the layers of one stack in order."""
        return [layer for name, layer in self.sites if name == stack]


class _Probe:
    """Records which modules call the attention interface, in order, and what they are given."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def for_forward(self, model: PreTrainedModel, kwargs: dict[str, Any]) -> tuple["_Probe", dict[str, Any]]:
        return self, kwargs

    def attend(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        self.calls.append(call)
        return call.run()


def read_geometry(model: PreTrainedModel) -> Geometry:
    """Return the model's geometry from one probing forward pass, leaving a site on each attention module.

    The probe reads 3 source tokens and, on an encoder-decoder, 2 target tokens: a module inside the encoder is an
    `encoder` site; outside it, 3 keys for 2 queries make a `cross` site.
    """
    config = model.config
    stock = config._attn_implementation
    sites: dict[Site, SiteShape] = {}
    if _can_inject(model):
        sites = _probe_sites(model)
        if not sites and config._attn_implementation != stock:
            model.set_attn_implementation(stock)
    limit = getattr(config, "max_position_embeddings", None)  # none for T5, whose positions are relative
    if limit is None:  # a composed model (text and pictures) keeps it in the part for text
        limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    width = model.get_input_embeddings().weight.shape[-1]
    return Geometry(sites, width, bool(config.is_encoder_decoder), limit)


def _can_inject(model: PreTrainedModel) -> bool:
    try:
        install(model)
    except (ValueError, KeyError, AttributeError, ImportError):
        return False
    return True


@torch.no_grad()
def _probe_sites(model: PreTrainedModel) -> dict[Site, SiteShape]:
    names = {id(module): name for name, module in model.named_modules()}
    encoder = model.get_encoder() if model.config.is_encoder_decoder else None
    inside = {id(module) for module in encoder.modules()} if encoder is not None else set()
    probe, handed = _Probe(), _Probe()
    ids = torch.zeros(1, 3, dtype=torch.long, device=model.device)
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if encoder is not None:
        arguments["decoder_input_ids"] = ids[:, :2]
    with activate(probe):
        model(**arguments, use_cache=False)
    model(**arguments, use_cache=False, foreword=handed)
    for entrance in entrances(model):
        entrance.foreword_hands_down = len(handed.calls) == len(probe.calls)
    if encoder is None and any(_sees_ahead(call) for call in probe.calls if id(call.module) in names):
        raise BackboneError(
            f"{type(model).__name__} reads text in both directions, so it cannot go on from one; give a decoder-only "
            "or an encoder-decoder model (a masked one takes written words: method 'autoprompt')"
        )
    sites = _name_sites(probe.calls, names, inside)
    return {} if _mixes_otherwise(model, probe.calls, sites) else sites


def _sees_ahead(call: AttentionCall) -> bool:
    """Whether the first token of the probe may look at the second one."""
    if call.mask is None:
        return False
    seen = call.mask[0, 0, 0, 1]
    return bool(seen) if call.mask.dtype == torch.bool else bool(seen == 0)


def _mixes_otherwise(model: PreTrainedModel, calls: list[AttentionCall], sites: dict[Site, SiteShape]) -> bool:
    """Whether tokens also meet by other ways than softmax attention over all keys or a window of them.

    Recurrent and convolutional layers carry text past an injected prefix and across the rows of a packed batch;
    chunked and sparse attention choose keys by rules that injection does not know.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ())
    convolves = any(isinstance(module, nn.Conv1d) for module in model.get_decoder().modules())
    chooses_keys = any(call.options.get(name) is not None for call in calls for name in KEY_CHOOSING_OPTIONS)
    layers = sum(stack == "decoder" for stack, _ in sites)
    missing = layers < getattr(config, "num_hidden_layers", layers)
    return convolves or chooses_keys or missing or not kinds <= {"full_attention", "sliding_attention"}


def _name_sites(calls: list[AttentionCall], names: dict[int, str], encoder: set[int]) -> dict[Site, SiteShape]:
    sites: dict[Site, SiteShape] = {}
    layers = {"encoder": 0, "decoder": 0, "cross": 0}
    for call in calls:
        if id(call.module) not in names:
            continue
        crossed = bool(encoder) and call.key.shape[2] != call.query.shape[2]
        stack = "encoder" if id(call.module) in encoder else "cross" if crossed else "decoder"
        site = (stack, layers[stack])
        layers[stack] += 1
        call.module.foreword_site = site
        sites[site] = SiteShape(call.key.shape[1], call.key.shape[3], call.value.shape[3], call.window)
    return sites


def blocks(root: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks inside `root` in order: the outermost members of its lists that hold a site.

    Give `model.get_decoder()` for one stack, the model for all of them. Empty where no attention site was found.
    """
    lists = [module for module in root.modules() if isinstance(module, nn.ModuleList)]
    outer = [child for one in lists for child in one if any(hasattr(m, "foreword_site") for m in child.modules())]
    inner = {id(module) for block in outer for module in block.modules() if module is not block}
    return [block for block in outer if id(block) not in inner]
