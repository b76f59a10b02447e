"""Choosing tokens: each row by its own settings and its own random generator, whatever its neighbours do.

The order and the arithmetic are Transformers' (temperature, top-k, top-p, min-p, one multinomial draw), so that a
sampled request equals `generate(..., do_sample=True, seed=...)` of that row alone on the same device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.serve.request import Sampling, TokenLogprob


class Sampler:
    """One row's choice of tokens.

    Attributes:
        sampling: the settings.
        min_tokens: ending ids are never chosen before this many tokens.
        ending: ids that end the row.
    """

    def __init__(self, sampling: Sampling, seed: int, min_tokens: int = 0, ending: Sequence[int] = ()) -> None:
        self.sampling, self.min_tokens, self.ending = sampling, min_tokens, list(ending)
        self._seed = seed
        self._generator: torch.Generator | None = None

    def is_plain(self, made_len: int) -> bool:
        """Whether the next token is simply the most likely one."""
        return self.sampling.is_greedy and not self.sampling.changes_logits and made_len >= self.min_tokens

    def choose(self, logits: Tensor, source: Sequence[int], made: Sequence[int]) -> int:
        """Return the next token.

        Args:
            logits: [V] of the model.
            source: token ids of the text.
            made: token ids of the answer so far.
        """
        scores = self._changed(logits.float(), source, made)
        if self.sampling.is_greedy:
            return int(scores.argmax())
        probabilities = self._kept(scores / self.sampling.temperature).softmax(-1)
        return int(torch.multinomial(probabilities, 1, generator=self._drawing_on(probabilities.device)))

    def _drawing_on(self, device: torch.device) -> torch.Generator:
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self._seed)
        return self._generator

    def _changed(self, scores: Tensor, source: Sequence[int], made: Sequence[int]) -> Tensor:
        """Return logits with penalties, biases and forbidden endings."""
        settings = self.sampling
        if not settings.changes_logits and len(made) >= self.min_tokens:
            return scores
        scores = scores.clone()
        if settings.repetition_penalty != 1:
            seen = torch.tensor(sorted({*source, *made}), device=scores.device)
            told = scores[seen]
            factor = settings.repetition_penalty
            scores[seen] = torch.where(told < 0, told * factor, told / factor)
        if made and (settings.presence_penalty or settings.frequency_penalty):
            tokens, counts = torch.tensor(made, device=scores.device).unique(return_counts=True)
            scores[tokens] -= settings.presence_penalty + settings.frequency_penalty * counts
        for token, bias in settings.logit_bias.items():
            scores[token] += bias
        if len(made) < self.min_tokens:
            scores[self.ending] = -torch.inf
        return scores

    def _kept(self, scores: Tensor) -> Tensor:
        """Return scores with -inf for tokens that top-k, top-p or min-p drop."""
        settings = self.sampling
        if 0 < settings.top_k < scores.shape[-1]:
            scores = scores.masked_fill(scores < scores.topk(settings.top_k).values[-1], -torch.inf)
        if settings.top_p < 1:
            ordered, index = scores.sort(descending=False)
            drop = ordered.softmax(-1).cumsum(-1) <= 1 - settings.top_p
            drop[-1] = False  # the most likely token always stays
            scores = scores.masked_fill(torch.zeros_like(drop).scatter(0, index, drop), -torch.inf)
        if settings.min_p > 0:
            chances = scores.softmax(-1)
            scores = scores.masked_fill(chances < settings.min_p * chances.max(), -torch.inf)
        return scores


def log_probabilities(logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
    """Return the model's log probability of the chosen token and of the likeliest ones.

    Args:
        logits: [V].
        token: the one that was chosen.
        alternatives: how many of the likeliest to tell.
    """
    told = logits.float().log_softmax(-1)
    top = told.topk(min(alternatives, len(told)))
    likeliest = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenLogprob(token, float(told[token]), likeliest)
