"""The named sizes: Llama-shaped decoders and T5 v1.1-shaped encoder-decoders, and how they are initialised.

Parameters with the 16,384-token vocabulary, embeddings included (they are shared by input and output):

    name   decoder           T5
    1.5m   d 64   L 8        d 64   L 3+3
    6m     d 192  L 7        d 192  L 3+3
    20m    d 384  L 8        d 384  L 4+4
    60m    d 640  L 10       d 640  L 5+5

T5 v1.1 has an output matrix of its own. Here it is the embedding's, or the smallest model would be two thirds
vocabulary; the decoder's outputs are then scaled by d^-0.5 before it, as in T5 1.0 (`scale_decoder_outputs`).

Width scaling. Hidden matrices are drawn with variance 1/fan-in, those that write to the residual stream with a
further 1/(2L), and trained by Muon, whose update has a fixed spectral norm times sqrt(fan-out/fan-in): the feature
change of a step does not depend on the width (the spectral condition of Yang, Simon & Bernstein 2023, equivalent to
muP). So one learning rate serves all sizes. Embeddings and norms are trained by AdamW at a rate of their own.
"""

import math
from typing import Literal

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

from foreword.errors import ConfigError, nearest

Family = Literal["decoder", "t5"]

# name: width, layers (decoder; T5 has `layers` in each stack), heads, key/value heads, feed-forward width
_DECODERS = {
    "tiny": (32, 2, 1, 1, 64),
    "1.5m": (64, 8, 2, 2, 176),
    "6m": (192, 7, 6, 6, 512),
    "20m": (384, 8, 6, 3, 1024),
    "60m": (640, 10, 10, 5, 1728),
}
_T5S = {
    "tiny": (32, 1, 1, 1, 64),
    "1.5m": (64, 3, 2, 2, 176),
    "6m": (192, 3, 6, 6, 512),
    "20m": (384, 4, 6, 6, 1024),
    "60m": (640, 5, 10, 10, 1728),
}
_EMBEDDING_STD = 0.02


def build_model(family: Family, size: str, vocabulary: int, positions: int, seed: int) -> PreTrainedModel:
    """Return a freshly initialised float32 model of a named size; the weights depend on the seed and the shape only.

    Args:
        family: `decoder` (LlamaForCausalLM) or `t5` (T5ForConditionalGeneration).
        size: a name of the table above, or `tiny` for tests.
        vocabulary: tokens V.
        positions: `max_position_embeddings` of a decoder; T5's positions are relative.
        seed: of a generator of its own.

    Raises:
        ConfigError: there is no such size.
    """
    sizes = _DECODERS if family == "decoder" else _T5S
    if size not in sizes:
        raise ConfigError(f"size = {size!r} is not a {family} size{nearest(size, sizes)}")
    width, layers, heads, kv_heads, hidden = sizes[size]
    if family == "decoder":
        model = LlamaForCausalLM(_llama(width, layers, heads, kv_heads, hidden, vocabulary, positions))
    else:
        model = T5ForConditionalGeneration(_t5(width, layers, heads, hidden, vocabulary))
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def _llama(
    width: int, layers: int, heads: int, kv_heads: int, hidden: int, vocabulary: int, positions: int
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )


def _t5(width: int, layers: int, heads: int, hidden: int, vocabulary: int) -> T5Config:
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=width // heads,
        d_ff=hidden,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )


def initialise(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Draw all weights anew: embeddings N(0, 0.02²), matrices N(0, 1/fan-in), residual writers over 2L more.

    T5 folds its attention scale into the query matrix, which therefore gets a further 1/d_kv (`matrix_scale`).
    """
    depth = getattr(model.config, "num_hidden_layers", None) or model.config.num_layers
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.dim() < 2:
                parameter.fill_(1.0)
            elif is_embedding(name):
                parameter.normal_(0.0, _embedding_std(name, model.config), generator=generator)
            else:
                parameter.normal_(0.0, _matrix_std(name, parameter, model.config, depth), generator=generator)


def is_embedding(name: str) -> bool:
    """Return whether a parameter is a table of vectors looked up by id rather than a matrix that maps features."""
    return any(part in name for part in ("embed_tokens", "shared", "lm_head", "relative_attention_bias"))


def _embedding_std(name: str, config: LlamaConfig | T5Config) -> float:
    # T5's logits are scaled by d^-0.5, so its embeddings start larger; its attention bias starts at nothing.
    if "relative_attention_bias" in name:
        return 0.0
    return _EMBEDDING_STD * (math.sqrt(config.d_model) if isinstance(config, T5Config) else 1.0)


def _matrix_std(name: str, parameter: nn.Parameter, config: LlamaConfig | T5Config, depth: int) -> float:
    std = parameter.shape[1] ** -0.5 * matrix_scale(name, config)
    writes = name.endswith(("o_proj.weight", "down_proj.weight", ".o.weight", ".wo.weight"))
    return std / math.sqrt(2 * depth) if writes else std


def matrix_scale(name: str, config: LlamaConfig | T5Config) -> float:
    """Return what a matrix's initial values and its learning rate are multiplied by.

    T5 divides no score by sqrt(d_kv): its query matrices carry that factor. Updated at the full rate they outgrew it,
    and 252 M tokens left the 6 M T5 at a higher loss than 74 M with the rate scaled (docs/LOG.md, 2026-11-26).
    """
    return config.d_kv**-0.5 if isinstance(config, T5Config) and name.endswith(".q.weight") else 1.0


def count_parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
