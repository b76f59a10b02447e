"""Initialisation: a named choice of first values for a fresh soft prompt.

Sources: `normal` and the MLP's own draw, Li & Liang 2021; `uniform`, `vocabulary`, `labels`, Lester et al. 2021
section 3.2 (constants in their released code); `activations`, Li & Liang's low-data initialisation, here for every
stack and through the MLP exactly (tables.MlpTable.set); `data`, keys and values of real training text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import PromptError
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.prompts.spec import InitName, InitSpec
from foreword.shapes import Float, Int

NEUTRAL_TEXT = "Read the text and write what is asked for:"


@dataclass(frozen=True)
class InitReport:
    """What an initialisation did, for the log.

    Attributes:
        name: the choice after resolving `auto`.
        detail: one line for people.
        error: root mean square error of the fit under an MLP, 0 for direct tables.
    """

    name: InitName
    detail: str
    error: float = 0.0


def initialise(
    prompt: SoftPrompt,
    backbone: Backbone,
    generator: torch.Generator,
    *,
    init: InitSpec | None = None,
    training_ids: Sequence[Sequence[int]] = (),
    source: SoftPrompt | None = None,
) -> InitReport:
    """Give a prompt its first values in place and return what was done.

    Args:
        prompt: as `make_prompt` returns it.
        backbone: the frozen model.
        generator: CPU generator; every random draw comes from it.
        init: the choice; None takes the prompt's spec.
        training_ids: token ids of training texts, for `data`.
        source: an already loaded prompt, for `artifact`.

    Raises:
        PromptError: the choice does not fit the prompt's kind, or what it needs is missing.
    """
    init = init or prompt.spec.init
    draw_undirected(prompt, generator)
    name = _resolve_auto(init.name, prompt, bool(training_ids))
    if name == "artifact":
        return _copy(prompt, source, init)
    if name in ("normal", "uniform", "uniform_positive"):
        return _random(prompt, backbone, name, init, generator)
    ids, detail = _tokens(prompt, backbone, name, init, generator, training_ids)
    if prompt.spec.kind == "prefix":
        states = backbone.record(ids=ids.to(backbone.device))
        error = max(_put(prompt, stack, prompt.flat_from_states(states, stack), init) for stack in prompt.tables)
        return InitReport(name, f"keys and values of {detail}", error)
    embeds = _label_embeddings(prompt, backbone, init, generator) if name == "labels" else backbone.embed(
        ids.to(backbone.device)
    )
    return InitReport(name, f"input embeddings of {detail}", _put(prompt, "embedding", embeds.float(), init))


def draw_undirected(prompt: SoftPrompt, generator: torch.Generator) -> None:
    """Fill every table with its default draw, made on the CPU so that the device does not change it."""
    device = next(prompt.parameters()).device
    prompt.to("cpu")
    for name, table in prompt.tables.items():
        table.draw(generator)
        if name == "offset":  # an infix starts near its plain embeddings; exactly zero would leave the MLP dead
            _scale_output(table, 1e-2)
    prompt.to(device)


@torch.no_grad()
def _scale_output(table: torch.nn.Module, factor: float) -> None:
    for parameter in (table.outer.parameters() if hasattr(table, "outer") else table.parameters()):
        parameter.mul_(factor)


def _resolve_auto(name: InitName, prompt: SoftPrompt, has_text: bool) -> InitName:
    """Return the default for the kind: real activations for prefixes (PEERS 1.4), vocabulary for embeddings."""
    if name != "auto":
        return name
    if prompt.spec.kind == "prefix":
        return "data" if has_text else "activations"
    return "vocabulary"


def _random(
    prompt: SoftPrompt, backbone: Backbone, name: InitName, init: InitSpec, generator: torch.Generator
) -> InitReport:
    """Fill direct tables at random; an MLP keeps the original code's draw for `normal`."""
    main = [table for table in prompt.tables if table != "offset"]
    if name == "normal" and prompt.spec.reparam == "mlp" and init.std is None:
        return InitReport(name, "P' ~ N(0, 1), linear layers as PyTorch draws them (Li & Liang's code)")
    if name == "normal":
        std = init.std or float(backbone.model.get_input_embeddings().weight.float().std())
        detail = f"N(0, {std:.4g})"
    else:
        low = -0.5 if name == "uniform" else 0.0
        detail = f"U[{low:g}, 0.5)"
    error = 0.0
    for table in main:
        shape = prompt.table(table).shape
        values = torch.randn(shape, generator=generator) * std if name == "normal" else (
            torch.rand(shape, generator=generator) * (0.5 - low) + low
        )
        error = max(error, _put(prompt, table, values.to(backbone.device), init))
    return InitReport(name, detail, error)


def _tokens(
    prompt: SoftPrompt,
    backbone: Backbone,
    name: InitName,
    init: InitSpec,
    generator: torch.Generator,
    training_ids: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, " P"], str]:
    """Return P token ids that the choice stands for, and a phrase for the log."""
    if name in ("words", "activations"):
        text = init.text or NEUTRAL_TEXT
        ids = backbone.tokenizer(" " + text.strip(), add_special_tokens=False).input_ids
        return _repeat(ids, prompt.length, f"init.text = {text!r}"), f"the words {text!r} ({len(ids)} tokens)"
    if name == "data":
        return _real_text(prompt.length, generator, training_ids), "real training text"
    sampled = sample_vocabulary(backbone, prompt.length, init.top_tokens, generator)
    if name == "labels":
        labels = [token for ids in _label_ids(backbone, init) for token in ids][: prompt.length]
        sampled[: len(labels)] = torch.tensor(labels)
        return sampled, "the class labels, then sampled vocabulary"
    return sampled, f"tokens sampled from the {init.top_tokens} most common"


def _label_ids(backbone: Backbone, init: InitSpec) -> list[list[int]]:
    """Return the tokens of each class label."""
    made = [backbone.tokenizer(label, add_special_tokens=False).input_ids for label in init.labels]
    for row, ids in enumerate(made):
        if not ids:
            raise PromptError(
                f"init.labels[{row}] = {init.labels[row]!r} has no token in this vocabulary; give another label"
            )
    return made


def sample_vocabulary(
    backbone: Backbone, length: int, top_tokens: int, generator: torch.Generator
) -> Int[Tensor, " P"]:
    """Return `length` ids from the first `top_tokens` of the vocabulary, without replacement while they last.

    Lester et al.'s code takes rows 0 to 4,999 (T5's ids are ordered by frequency), special tokens not excluded.
    """
    top = min(top_tokens, backbone.model.get_input_embeddings().weight.shape[0])
    if length <= top:
        return torch.randperm(top, generator=generator)[:length]
    return torch.randint(top, (length,), generator=generator)


def _label_embeddings(
    prompt: SoftPrompt, backbone: Backbone, init: InitSpec, generator: torch.Generator
) -> Float[Tensor, "P E"]:
    """Return one row a label (the mean of its tokens' embeddings), the remaining rows sampled from the vocabulary.

    More labels than rows: the last ones are dropped (Lester et al.'s code).
    """
    ids = sample_vocabulary(backbone, prompt.length, init.top_tokens, generator)
    embeds = backbone.embed(ids.to(backbone.device)).clone()
    for row, tokens in enumerate(_label_ids(backbone, init)[: prompt.length]):
        embeds[row] = backbone.embed(torch.tensor(tokens, device=backbone.device)).mean(0)
    return embeds


def _repeat(ids: list[int], length: int, what: str) -> Int[Tensor, " P"]:
    """Return ids cut or repeated to `length`."""
    if not ids:
        raise PromptError(f"{what} has no token in this vocabulary; give other words")
    return torch.tensor((ids * (length // len(ids) + 1))[:length])


def _real_text(
    length: int, generator: torch.Generator, training_ids: Sequence[Sequence[int]]
) -> Int[Tensor, " P"]:
    """Return the first `length` tokens of training texts drawn at random and joined."""
    ids: list[int] = []
    for index in torch.randperm(len(training_ids), generator=generator).tolist():
        ids += training_ids[index]
        if len(ids) >= length:
            break
    if not ids:
        raise PromptError("init.name = 'data' needs training text; pass training_ids or choose 'activations'")
    return _repeat(ids, length, "the training text")


def _copy(prompt: SoftPrompt, source: SoftPrompt | None, init: InitSpec) -> InitReport:
    """Take another prompt's tables, repeated or cut to this one's length."""
    if source is None:
        raise PromptError(f"init.artifact = {init.artifact!r} was not loaded; pass source=load_prompt(...)")
    if set(source.tables) != set(prompt.tables):
        raise PromptError(f"init.artifact is a {source.spec.kind} prompt; this one is a {prompt.spec.kind}")
    error = 0.0
    with torch.no_grad():
        for name in prompt.tables:
            values = source.table(name)
            rows = torch.arange(prompt.length) % source.length
            if values.shape[1] != prompt.table(name).shape[1]:
                raise PromptError(f"init.artifact's {name} is {values.shape[1]} wide; this backbone needs another")
            error = max(error, _put(prompt, name, values[rows].to(prompt.table(name).device), init))
    return InitReport("artifact", f"the prompt {init.artifact!r}", error)


def _put(prompt: SoftPrompt, table: str, values: Tensor, init: InitSpec) -> float:
    """Set one table, through the MLP if it has one, and return the fit's root mean square error."""
    return prompt.tables[table].set(
        values.detach(), fit=init.fit, steps=init.fit_steps, learning_rate=init.fit_learning_rate
    )
