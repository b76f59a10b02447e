"""Attention over some of the keys, and how it becomes attention over all of them.

Softmax over several parts is put together from each part's output and log-sum-exp, as FlashAttention does with blocks
(Dao et al. 2022): out = sum_i out_i exp(lse_i - lse), lse = log sum_i exp(lse_i). So no keys are ever concatenated.
"""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.prompts.attention import AttentionCall

LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True, eq=False)
class Partial:
    """Attention over some of the keys: normalised outputs [..., D] and log-sum-exp [...]."""

    out: Tensor
    lse: Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, call: AttentionCall) -> Partial:
    """Return softmax attention and its log-sum-exp.

    Args:
        query: [..., n, D], scaled.
        key: [..., S, D].
        value: [..., S, D].
        hidden: broadcasts to [..., n, S]; what a query must not see. Where that is all, its lse is the lowest number.
        call: for soft-capping.
    """
    scores = torch.matmul(query, key.transpose(-1, -2))
    weights, lse = softmax_and_lse(scores, hidden, call)
    return Partial(torch.matmul(weights.to(value.dtype), value), lse)


def scaled(query: Tensor, call: AttentionCall) -> Tensor:
    """Return queries [..., D] times what scores are multiplied with before the softmax, in one piece of memory."""
    given = call.options.get("scaling")
    return (query * (query.shape[-1] ** -0.5 if given is None else given)).contiguous()


def softmax_and_lse(scores: Tensor, hidden: Tensor | None, call: AttentionCall) -> tuple[Tensor, Tensor]:
    """Return weights [..., S] in float32 and their log-sum-exp [...]; the scores may be overwritten.

    What is hidden has the lowest number, not -inf: on CPUs exp(-inf) is slow, and where all is hidden no NaN comes.
    The log-sum-exp is read off the largest weight, exp(max - lse), so there is one pass of exponentials and not two.
    """
    cap, scores = call.options.get("softcap"), scores.float()
    if cap is not None:
        scores = torch.where(scores > LOWEST, torch.tanh(scores / cap) * cap, scores)  # padding stays lowest
    if hidden is not None:
        scores = scores.masked_fill_(hidden, LOWEST)
    weights = torch.softmax(scores, -1)
    return weights, scores.amax(-1) - weights.amax(-1).log()


def merge(one: Partial, other: Partial) -> Partial:
    """Return attention over two disjoint sets of keys from attention over each.

    The other's share of the softmax is exp(lse' - lse) = sigmoid(lse' - lse of one), with lse that of both.
    """
    share_of_other = torch.sigmoid(other.lse - one.lse)[..., None]
    out = torch.lerp(one.out.float(), other.out.float(), share_of_other)
    return Partial(out.to(one.out.dtype), torch.logaddexp(one.lse, other.lse))


def with_sinks(made: Partial, sinks: Tensor | None) -> Partial:
    """Return attention that also looks at sinks [H], keys without a value (gpt-oss)."""
    if sinks is None:
        return made
    lse = torch.logaddexp(made.lse, sinks.view(made.lse.shape[1:]).to(made.lse.dtype))
    return dataclasses.replace(made, out=made.out * (made.lse - lse).exp()[..., None].to(made.out.dtype))
