"""What each virtual token does: the loss without it, and how large it is.

Leaving one out is meant literally: the prompt without virtual token p has P - 1 of them. A prefix's other keys and
values stay as learned; soft tokens after p are read anew without it. All P + 1 variants of a batch run in one pass.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from foreword.backbone import Backbone
from foreword.errors import PromptError
from foreword.prompts.bank import Site
from foreword.prompts.batch import Row
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.train.loss import target_loss

ROWS_A_PASS = 64
NORM_SAMPLE = 64


@dataclass(frozen=True)
class Importance:
    """Losses in nats per target token.

    Attributes:
        whole: with the prompt as it is.
        bare: without any prompt.
        without: [P] with one virtual token left out.
        tokens: target tokens that the losses are means of.
    """

    whole: float
    bare: float
    without: tuple[float, ...]
    tokens: int

    @property
    def rises(self) -> tuple[float, ...]:
        """How much the loss rises without each virtual token; below zero, the prompt is better without it."""
        return tuple(loss - self.whole for loss in self.without)


def without_token(prompt: SoftPrompt, position: int) -> SoftPrompt:
    """Return the prompt without one virtual token, MLPs folded.

    Raises:
        PromptError: no such position, or it is the only one.
    """
    if not 0 <= position < prompt.length:
        raise PromptError(f"position {position} is not among the {prompt.length} virtual tokens")
    if prompt.length == 1:
        raise PromptError("a prompt of one virtual token has nothing left without it")
    spec = dataclasses.replace(prompt.spec, length=prompt.length - 1, reparam="none")
    smaller = SoftPrompt(spec, prompt.geometry).to(next(prompt.parameters()).device)
    kept = [i for i in range(prompt.length) if i != position]
    with torch.no_grad():
        for name in smaller.tables:
            smaller.tables[name].set(prompt.table(name)[kept])
    smaller.format, smaller.fingerprint = prompt.format, prompt.fingerprint
    return smaller.eval()


@torch.no_grad()
def leave_one_out(
    prompt: SoftPrompt, backbone: Backbone, rows: Sequence[Row], rows_a_pass: int = ROWS_A_PASS
) -> Importance:
    """Return the loss with the prompt, without any, and without each virtual token in turn.

    Args:
        prompt: at least two virtual tokens.
        backbone: the frozen model.
        rows: sources with targets.
        rows_a_pass: rows of one pass, variants counted; at least one source with all its variants runs together.

    Raises:
        PromptError: a prompt of one virtual token.
        TrainingError: no row has a target token.
    """
    variants = [prompt.fold().eval(), None, *(without_token(prompt, p) for p in range(prompt.length))]
    each = max(1, rows_a_pass // len(variants))
    sums, tokens = torch.zeros(len(variants), dtype=torch.float64), 0
    for start in range(0, len(rows), each):
        chunk = rows[start : start + each]
        given = [variant for variant in variants for _ in chunk]
        found = target_loss(backbone, list(chunk) * len(variants), given)
        sums += found.per_target.double().cpu().view(len(variants), -1).sum(1)
        tokens += found.num_tokens // len(variants)
    if not tokens:
        raise PromptError("no text to leave tokens out on; give at least one with a target")
    whole, bare, *without = (sums / tokens).tolist()
    return Importance(whole, bare, tuple(without), tokens)


@dataclass(frozen=True)
class Norms:
    """How large virtual tokens are beside real ones.

    Attributes:
        embedding: [P] each soft token's norm over the median norm of the vocabulary's embeddings; empty for a prefix.
        keys: for each site, [P] mean over heads of a virtual token's key norm over that of real tokens.
        values: the same of values.
    """

    embedding: tuple[float, ...]
    keys: dict[Site, tuple[float, ...]]
    values: dict[Site, tuple[float, ...]]


@torch.no_grad()
def token_norms(prompt: SoftPrompt, backbone: Backbone, generator: torch.Generator | None = None) -> Norms:
    """Return the norms of a prompt's virtual tokens relative to those of real tokens.

    Keys and values are compared with those of random tokens that run through the model as one text; a prompt that
    compiles to a prefix has both kinds of norm.

    Args:
        prompt: any kind.
        backbone: the frozen model.
        generator: CPU generator that draws the real tokens; None takes seed 0.
    """
    generator = generator or torch.Generator().manual_seed(0)
    table = backbone.model.get_input_embeddings().weight
    embedding: tuple[float, ...] = ()
    if "embedding" in prompt.tables:
        usual = backbone.embed(torch.arange(len(table), device=table.device)).float().norm(dim=-1).median()
        embedding = tuple((prompt.table("embedding").norm(dim=-1) / usual).tolist())
    prefix = prompt.fold().eval().realise(backbone).prefix
    if prefix is None or not prefix.states:
        return Norms(embedding, {}, {})
    ids = torch.randperm(len(table), generator=generator)[:NORM_SAMPLE].to(backbone.device)
    real = backbone.record(ids=ids)
    first = int(prefix.includes_bos)
    keys, values = (
        {
            site: tuple(_relative(pair[which][:, first:], real[site][which]))
            for site, pair in prefix.states.items()
        }
        for which in (0, 1)
    )
    return Norms(embedding, keys, values)


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> list[float]:
    """Return [P] norms of [K, P, D] states, mean over heads, over the median of the others'."""
    usual = theirs.float().norm(dim=-1).median().clamp(min=1e-12)
    return (ours.float().norm(dim=-1).mean(0) / usual).tolist()


__all__ = ["Importance", "Norms", "leave_one_out", "token_norms", "without_token"]
