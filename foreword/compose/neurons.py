"""Which feed-forward neurons a prompt activates, and how much two prompts' neurons overlap (ON; Su et al. 2022).

The backbone reads `[prompt; <s>]` (an encoder-decoder: the encoder reads it, the decoder its start token). A neuron is
one output of a feed-forward activation function at the last position; in a gated layer that is the gate. ON is the
**cosine** of two 0/1 vectors, |A and B| / sqrt(|A| |B|), over a group of layers; it is no Jaccard index (RECIPES 3.1).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import activations

from foreword.backbone import Backbone
from foreword.errors import BackboneError, ConfigError, PromptError, nearest
from foreword.frozen import decoder_of
from foreword.prompts.batch import Row, realise_all
from foreword.prompts.inject import activate
from foreword.prompts.padded import pad
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.shapes import Float

Activity = list[Float[Tensor, " F"]]
"""One layer's neurons a tensor, in the order in which the layers run."""

TORCH_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.LeakyReLU, nn.Sigmoid, nn.Mish)
"""What Transformers' ACT2FN takes from PyTorch; its own classes live in `transformers.activations`."""


@torch.no_grad()
def neuron_activity(backbone: Backbone, prompt: SoftPrompt | None) -> Activity:
    """Return what each feed-forward neuron puts out when the model reads a prompt and `<s>`.

    Args:
        backbone: the frozen model.
        prompt: the prompt; None reads `<s>` alone.

    Raises:
        BackboneError: no feed-forward activation is found in the model's decoder.
        PromptError: the prompt does not belong to the backbone, or the tokenizer has no token to read.
    """
    start = _start_token(backbone)
    # A suffix or infix goes before it; an after_bos prompt takes the first <s> with it.
    behind_bos = prompt is not None and prompt.spec.placement == "after_bos"
    row = Row((start, start) if behind_bos else (start,), tail=1)
    training = prompt is not None and prompt.training
    try:
        if prompt is not None:
            prompt.eval()
        batch = pad(backbone, [row], realise_all(backbone, [prompt]))
        with activate(batch.injection), _listening(decoder_of(backbone)) as heard:
            backbone.model(**batch.inputs, **_decoder_inputs(backbone), use_cache=False)
    finally:
        if prompt is not None:
            prompt.train(training)
    if not heard:
        name = type(backbone.model).__name__
        raise BackboneError(f"{name} has no feed-forward activation module in its decoder; use C_avg in place of ON")
    return [output[0, -1].float().cpu() if output.dim() == 3 else output[-1].float().cpu() for output in heard]


def overlap(
    first: Activity, second: Activity, layers: Sequence[int] | None = None, how: str = "binary", top: int = 100
) -> float:
    """Return the overlap of two prompts' neurons over a group of layers.

    Args:
        first: as `neuron_activity` returns it.
        second: the same of another prompt on the same backbone.
        layers: numbers of layers; None takes all.
        how: `binary` the cosine of "greater than 0" (ON); `raw` the cosine of the outputs (Su et al.'s later code);
            `top` the share of the `top` strongest neurons that both have.
        top: for `top`.

    Raises:
        ConfigError: an unknown `how`, or a layer that the model lacks.
        PromptError: the two come from different models.
    """
    if how not in ON_FORMS:
        raise ConfigError(f"how = {how!r} is unknown{nearest(how, ON_FORMS)}")
    if [len(a) for a in first] != [len(b) for b in second]:
        raise PromptError("neurons of different models cannot be compared; take both prompts on one backbone")
    chosen = range(len(first)) if layers is None else layers
    if not chosen or not set(chosen) <= set(range(len(first))):
        raise ConfigError(f"layers = {list(chosen)} are not among the model's layers 0 to {len(first) - 1}")
    one, other = (torch.cat([activity[layer] for layer in chosen]).double() for activity in (first, second))
    return ON_FORMS[how](one, other, top)


def _binary(one: Tensor, other: Tensor, top: int) -> float:
    return float(F.cosine_similarity((one > 0).double(), (other > 0).double(), dim=0))


def _raw(one: Tensor, other: Tensor, top: int) -> float:
    return float(F.cosine_similarity(one, other, dim=0))


def _top(one: Tensor, other: Tensor, top: int) -> float:
    top = min(top, len(one))
    return len(set(one.topk(top).indices.tolist()) & set(other.topk(top).indices.tolist())) / top


ON_FORMS: dict[str, Callable[[Tensor, Tensor, int], float]] = {"binary": _binary, "raw": _raw, "top": _top}


def layer_groups(count: int, size: int = 3) -> dict[str, list[int]]:
    """Return layers 0..count-1 in groups of `size` (Su et al. take 3), bottom first, and `all`, by name."""
    starts = range(0, count, size)
    groups = {f"{at}-{min(at + size, count) - 1}": list(range(at, min(at + size, count))) for at in starts}
    return {**groups, "all": list(range(count))}


def overlap_matrices(
    backbone: Backbone,
    prompts: Mapping[str, SoftPrompt],
    size: int = 3,
    how: Literal["binary", "raw", "top"] = "binary",
) -> dict[str, Float[Tensor, "N N"]]:
    """Return ON of every prompt with every other, by group of layers; each prompt is read once.

    Args:
        backbone: the frozen model.
        prompts: N prompts.
        size: layers in a group.
        how: as in `overlap`.
    """
    read = [neuron_activity(backbone, prompt) for prompt in prompts.values()]
    groups = layer_groups(len(read[0]), size) if read else {}
    return {
        name: torch.tensor([[overlap(a, b, layers, how) for b in read] for a in read], dtype=torch.float64)
        for name, layers in groups.items()
    }


@contextmanager
def _listening(decoder: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of the decoder's activation modules in the order in which they run."""
    heard: list[Tensor] = []
    found = {id(m): m for m in decoder.modules() if _is_activation(m)}
    hooks = [m.register_forward_hook(lambda _, __, output: heard.append(output)) for m in found.values()]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _is_activation(module: nn.Module) -> bool:
    own = type(module).__module__ == activations.__name__ and not list(module.children())
    return own or isinstance(module, TORCH_ACTIVATIONS)


def _start_token(backbone: Backbone) -> int:
    tokenizer = backbone.tokenizer
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return token
    raise PromptError("the tokenizer has no BOS, EOS or pad token to read after the prompt; set tokenizer.bos_token")


def _decoder_inputs(backbone: Backbone) -> dict[str, Tensor]:
    if not backbone.is_encoder_decoder:
        return {}
    config = backbone.model.config
    start = config.decoder_start_token_id
    start = config.pad_token_id if start is None else start
    return {"decoder_input_ids": torch.tensor([[start]], device=backbone.device)}
