"""A batch of rows under an objective, and its loss: one code path for decoders and encoder-decoders."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from foreword.pretrain.objectives import (
    prefix_lm_split,
    random_spans_noise_mask,
    shift_right,
    span_corruption,
    span_corruption_lengths,
)
from foreword.pretrain.pack import GIVEN

Objective = Literal["causal", "span_corruption", "prefix_lm"]
IGNORED = -100
# Positions whose [chunk, V] logits exist at a time: a CPU's cache wants few, a GPU many, or it waits for launches.
_LOSS_CHUNK = {"cpu": 1024, "cuda": 16384}


@dataclass(frozen=True)
class Batch:
    """Token ids, int64. A decoder has no `decoder_inputs`."""

    inputs: Tensor  # [B, T] of the decoder, or of the encoder
    targets: Tensor  # [B, T] of the decoder; -100 where there is nothing to learn
    decoder_inputs: Tensor | None = None  # [B, T]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device; from pinned memory the copy does not wait for the device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Return the batch in memory that a GPU copies from by itself; a `DataLoader` that pins asks for it."""
        return self._each(Tensor.pin_memory)

    def copy_(self, other: "Batch") -> None:
        """Take over the values of a batch of the same shapes; from pinned memory without waiting for the device."""
        self.inputs.copy_(other.inputs, non_blocking=True)
        self.targets.copy_(other.targets, non_blocking=True)
        if self.decoder_inputs is not None:
            self.decoder_inputs.copy_(other.decoder_inputs, non_blocking=True)

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        decoder_inputs = None if self.decoder_inputs is None else function(self.decoder_inputs)
        return Batch(function(self.inputs), function(self.targets), decoder_inputs)


def row_context(objective: Objective, context: int) -> int:
    """Return how many raw tokens a row needs so that the model's inputs have `context` tokens."""
    return span_corruption_lengths(context)[0] if objective == "span_corruption" else context


def make_batch(
    objective: Objective, rows: np.ndarray, rng: np.random.Generator, vocabulary: int, split_multiple: int = 1
) -> Batch:
    """Return the batch of an objective.

    Args:
        objective: `causal` takes a row's token t as input and t+1 as target; `span_corruption` and `prefix_lm` use
            the row without the extra token.
        rows: int64 `[B, context + 1]` of `Mixture.rows`; 0 is padding, which only ends a stream. A token with the bit
            `GIVEN` is read as the token it is; only the causal objective leaves it out of the targets.
        rng: draws spans and splits.
        vocabulary: V; V - 1 is the first sentinel.
        split_multiple: prefix-LM splits are multiples of this. All rows of a batch share one split, so that nothing
            is padded; over the steps it is as uniform as a split for each row.
    """
    tokens = rows & (GIVEN - 1)
    if objective == "causal":
        return Batch(torch.from_numpy(tokens[:, :-1]), _targets(np.where(rows & GIVEN, 0, tokens)[:, 1:]))
    rows = tokens[:, :-1]
    if objective == "prefix_lm":
        split = prefix_lm_split(rng, rows.shape[1], split_multiple)
        inputs, targets = rows[:, :split], rows[:, split:]
    else:
        masks = [random_spans_noise_mask(rng, rows.shape[1]) for _ in rows]
        pairs = [span_corruption(row, mask, vocabulary - 1, end=1) for row, mask in zip(rows, masks, strict=True)]
        inputs, targets = (np.stack(side) for side in zip(*pairs, strict=True))
    return Batch(torch.from_numpy(inputs), _targets(targets), torch.from_numpy(shift_right(targets, start=0)))


def _targets(tokens: np.ndarray) -> Tensor:
    return torch.from_numpy(np.where(tokens == 0, IGNORED, tokens))


def hidden_states(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Return `[B, T, E]`, the decoder's last states, scaled as the output matrix expects them."""
    if batch.decoder_inputs is None:
        return model.model(input_ids=batch.inputs, use_cache=False).last_hidden_state
    across, causal = _masks(batch)
    encoded = model.encoder(input_ids=batch.inputs, attention_mask=across).last_hidden_state
    states = model.decoder(
        input_ids=batch.decoder_inputs,
        attention_mask=causal,
        encoder_hidden_states=encoded,
        encoder_attention_mask=across,
        use_cache=False,
    ).last_hidden_state
    # Transformers 4 scales when the embeddings are tied; 5 has a field for it.
    return states * model.model_dim**-0.5 if getattr(model.config, "scale_decoder_outputs", True) else states


def _masks(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what is added to scores: `[1, 1, 1, S]` of the encoder's positions, `[1, 1, T, T]` of the decoder's.

    Nothing is padded, so Transformers would leave masks out, except while a CUDA graph is captured; given whole, they
    are the same there, and what was compiled before is not compiled again.
    """
    device, length = batch.inputs.device, batch.targets.shape[1]
    across = torch.zeros(1, 1, 1, batch.inputs.shape[1], device=device)
    later = torch.full((length, length), torch.finfo(torch.float32).min, device=device).triu(1)
    return across, later[None, None]


def chunk_losses(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return `[N]` float32 nats, 0 where ignored, of states `[N, E]` under an output matrix `[V, E]`."""
    logits = functional.linear(states, weight).float()
    return functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


def compile_blocks(model: PreTrainedModel) -> None:
    """Compile every block of a model in place; blocks alike share one compilation.

    A whole body of eight layers took five times as long to compile, ran no faster, and hid from Transformers that rows
    are not padded, which made it build a mask in place of causal attention's own kernel.
    """
    stacks = [model.model.layers] if hasattr(model, "model") else [model.encoder.block, model.decoder.block]
    for block in (block for stack in stacks for block in stack):
        block.compile(dynamic=False)


class Loss:
    """The loss of a batch, its output layer compiled if asked for."""

    def __init__(self, compiled: bool) -> None:
        self.chunk: Callable[..., Tensor] = torch.compile(chunk_losses) if compiled else chunk_losses

    def per_target(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return `[B * T]` float32 nats a target, 0 where ignored."""
        states = hidden_states(model, batch).flatten(0, 1)
        targets, size = batch.targets.flatten(), _LOSS_CHUNK["cuda" if states.is_cuda else "cpu"]
        pairs = zip(states.split(size), targets.split(size), strict=True)
        return torch.cat([self.chunk(s, model.get_output_embeddings().weight, t) for s, t in pairs])
