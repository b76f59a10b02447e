"""An ensemble: N prompts of one task answer in one forward pass of batch N, the model in memory once.

Lester et al. 2021, section 6: each text is replicated inside the batch, once a member, and the members' answers are
merged by a vote. Leading prompts are compiled to prefixes when the ensemble is made, so a pass computes text alone.
What may be shared is shared: a source's label words or candidates stand behind one computation of the source by each
member, and members that stand behind the source themselves have one between them (`shared.py`). Members in front of it
cannot: all that a text becomes depends on the prompt before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from foreword.backbone import Backbone
from foreword.compose.shared import share_sources
from foreword.compose.vote import majority, mean_of_probabilities, ranked
from foreword.data.examples import encode_source, encode_target, get_format
from foreword.errors import ConfigError, PromptError, nearest
from foreword.evaluate.subject import generation_options
from foreword.generate import generate_ids
from foreword.generate.offline import Prompt
from foreword.prompts.batch import Row, realise_all
from foreword.prompts.soft_prompt import Realised, SoftPrompt, compile_prompt
from foreword.shapes import Float
from foreword.tasks.task import GenerationLimits
from foreword.train.loss import target_loss

RULES = ("majority", "mean", "borda", "runoff")
BATCH_TEXTS = 8


@dataclass(eq=False)
class Ensemble:
    """N prompts of one task over one backbone.

    Attributes:
        backbone: the frozen model.
        prompts: the members, best first where that is known: the order breaks ties.
        weights: N numbers that break ties of the majority before the order does (dev scores, say), or None.
        max_source: truncation of sources in tokens, as in training.
        batch_size: texts in one pass; a pass has N times as many rows.
    """

    backbone: Backbone
    prompts: Sequence[SoftPrompt]
    weights: Sequence[float] | None = None
    max_source: int | None = None
    batch_size: int = BATCH_TEXTS
    _ready: list[Realised] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile what compiles.

        Raises:
            ConfigError: no member, another number of weights, or no text in a pass.
            PromptError: a prompt was learned on another backbone.
        """
        if not self.prompts:
            raise ConfigError("an ensemble of no member cannot answer; give at least one prompt")
        if self.weights is not None and len(self.weights) != len(self.prompts):
            raise ConfigError(f"{len(self.weights)} weights for {len(self.prompts)} prompts; give one each")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size} texts in a pass; give at least 1")
        for prompt in self.prompts:
            prompt.check_backbone(self.backbone)
            prompt.eval()
        with torch.no_grad():
            self._ready = realise_all(self.backbone, [compiled(prompt, self.backbone) for prompt in self.prompts])

    @property
    def size(self) -> int:
        """N."""
        return len(self.prompts)

    def answer(self, texts: Sequence[str], limits: GenerationLimits | None = None, rule: str = "majority") -> list[str]:
        """Return one string a text.

        `majority` votes over the members' strings; `mean` decodes one string from the mean of the members'
        probabilities, token by token; `borda` and `runoff` let every member rank all members' strings by its own
        log-probability of them.

        Args:
            texts: B sources.
            limits: how to decode; None takes the defaults.
            rule: one of `RULES`.

        Raises:
            ConfigError: an unknown rule.
        """
        check_rule(rule)
        limits = limits or GenerationLimits()
        if rule == "mean":
            return self.decode_mean(texts, limits)
        return self.vote(texts, self.outputs(texts, limits), rule)

    def vote(self, texts: Sequence[str], strings: Sequence[Sequence[str]], rule: str = "majority") -> list[str]:
        """Return one string a text, chosen among those that the members made of it.

        Args:
            texts: B sources.
            strings: [B][N] of `outputs`.
            rule: one of `RULES` but `mean`, which makes a string of its own.

        Raises:
            ConfigError: an unknown rule, or `mean`.
        """
        check_rule(rule)
        if rule == "mean":
            raise ConfigError("rule = 'mean' makes strings of its own, it does not vote; use decode_mean")
        if rule == "majority":
            return [majority(votes, self.weights) for votes in strings]
        candidates = [list(dict.fromkeys(votes)) for votes in strings]
        return [ranked(order, rule) for order in self.rank(texts, candidates)]

    def classify(self, texts: Sequence[str], labels: Sequence[str], rule: str = "majority") -> list[str]:
        """Return one label a text, members choosing among the labels by their probability (no generation).

        Args:
            texts: B sources.
            labels: C label words.
            rule: `mean` averages each member's distribution over the labels; the others count its first or all places.

        Raises:
            ConfigError: an unknown rule, or no label.
        """
        check_rule(rule)
        scores = self.scores(texts, [list(labels)] * len(texts))
        if rule == "mean":
            tables = [one.softmax(-1).tolist() for one in scores]
            return [labels[mean_of_probabilities(table)[0]] for table in tables]
        orders = [_rankings(one, labels) for one in scores]
        if rule == "majority":
            return [majority([order[0] for order in rankings], self.weights) for rankings in orders]
        return [ranked(rankings, rule) for rankings in orders]

    def outputs(self, texts: Sequence[str], limits: GenerationLimits | None = None) -> list[list[str]]:
        """Return [B][N] what each member makes of each text, B texts and N members in one batch."""
        made: list[list[str]] = [[]] * len(texts)
        options = generation_options(self.backbone, limits or GenerationLimits())
        for chunk in self._chunks(texts):
            ids = self._generate([texts[i] for i in chunk], options)
            for i, members in zip(chunk, ids, strict=True):
                made[i] = [self._text(one) for one in members]
        return made

    def decode_mean(self, texts: Sequence[str], limits: GenerationLimits | None = None) -> list[str]:
        """Return one string a text, each token chosen by the mean of the members' probabilities.

        All members read the tokens chosen so far. With beams, the mean takes the place of a model's probability. A
        member's probabilities are those left to it by the task's forbidden words.
        """
        made = [""] * len(texts)
        options = generation_options(self.backbone, limits or GenerationLimits())
        for chunk in self._chunks(texts):
            ids = self._generate([texts[i] for i in chunk], options, average=True)
            for i, members in zip(chunk, ids, strict=True):
                made[i] = self._text(members[0])
        return made

    @torch.no_grad()
    def scores(self, texts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[Float[Tensor, "N C"]]:
        """Return each member's log-probability in nats of each candidate after each text, its end included.

        Args:
            texts: B sources.
            candidates: B lists of targets, of any lengths; a member computes each source once for all of them.

        Raises:
            ConfigError: a text without candidates, or another number of lists.
        """
        if len(candidates) != len(texts) or not all(candidates):
            raise ConfigError(f"{len(candidates)} lists of candidates for {len(texts)} texts; give each at least one")
        made: list[Tensor] = [torch.empty(0)] * len(texts)
        for chunk in self._chunks(texts):
            rows = [row for i in chunk for row in self._rows(texts[i], candidates[i])]
            loss = target_loss(self.backbone, *share_sources(self.backbone, rows, self._ready * len(chunk)))
            parts = (-loss.per_target).cpu().split([self.size * len(candidates[i]) for i in chunk])
            for i, part in zip(chunk, parts, strict=True):
                made[i] = part.view(self.size, -1)
        return made

    def rank(self, texts: Sequence[str], candidates: Sequence[Sequence[str]]) -> list[list[list[str]]]:
        """Return [B][N] each member's candidates, best first; an empty string stands for an end at once."""
        found = self.scores(texts, candidates)
        return [_rankings(one, names) for one, names in zip(found, candidates, strict=True)]

    def _chunks(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the numbers of the texts of each pass; texts of like length share one."""
        if isinstance(texts, str):
            raise PromptError("texts is one string; pass a list of strings")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def _rows(self, text: str, targets: Sequence[str] = ()) -> list[Row]:
        """Return a text's N rows, each in its member's format; members of one format share the tokenising."""
        made: dict[str | None, Row] = {}
        for name in dict.fromkeys(prompt.format for prompt in self.prompts):
            form = get_format(name, self.backbone.is_encoder_decoder)
            source = encode_source(self.backbone.tokenizer, text, form, self.max_source)
            encode = partial(encode_target, self.backbone.tokenizer, form=form)
            ends = (self.backbone.tokenizer.eos_token_id,)
            made[name] = Row(source, tuple(encode(target) if target.strip() else ends for target in targets), form.tail)
        return [made[prompt.format] for prompt in self.prompts]

    def _generate(self, texts: Sequence[str], options: dict[str, Any], average: bool = False) -> list[list[list[int]]]:
        """Return [B][N] new token ids of one pass."""
        rows = [row for text in texts for row in self._rows(text)]
        rows, prompts = share_sources(self.backbone, rows, self._ready * len(texts))
        # `generate_ids` puts rows in this order; a processor must know which row is whose.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))
        place = torch.tensor(order).argsort().view(len(texts), self.size)
        if average:
            options = options | {"logits_processor": LogitsProcessorList([MeanOfProbabilities(place)])}
        made = generate_ids(self.backbone, [rows[i] for i in order], [prompts[i] for i in order], **options)
        return [[made[row] for row in members] for members in place.tolist()]

    def _text(self, ids: Sequence[int]) -> str:
        return self.backbone.tokenizer.decode(ids, skip_special_tokens=True).strip()


class MeanOfProbabilities(LogitsProcessor):
    """Gives all members' rows the logarithm of their mean probability, so that all of them take the same token."""

    def __init__(self, place: Tensor) -> None:
        """Take [B, N] the row of each text's each member."""
        self.place = place

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
        """Return [R, V] the mean's log-probabilities; R is rows, or rows times beams."""
        place, rows = self.place.to(scores.device), self.place.numel()
        log_p = scores.float().log_softmax(-1).view(rows, -1, scores.shape[-1])
        means = log_p[place].logsumexp(1, keepdim=True) - torch.tensor(float(place.shape[1])).log()
        merged = torch.empty_like(log_p)
        merged[place] = means.expand(-1, place.shape[1], -1, -1)
        return merged.view_as(scores).to(scores.dtype)


def compiled(prompt: SoftPrompt, backbone: Backbone) -> Prompt:
    """Return a leading prompt as a prefix, computed once for all passes; what depends on the text stays as it is."""
    if prompt.spec.kind == "prefix" or (
        prompt.spec.is_leading and backbone.geometry.sites and not backbone.is_encoder_decoder
    ):
        return compile_prompt(prompt, backbone)
    return prompt


def _rankings(scores: Float[Tensor, "N C"], names: Sequence[str]) -> list[list[str]]:
    """Return [N][C] the names by falling score; equal scores keep the names' order."""
    orders = scores.argsort(dim=-1, descending=True, stable=True).tolist()
    return [[names[i] for i in order] for order in orders]


def check_rule(rule: str) -> None:
    """Raise where an ensemble has no such rule.

    Raises:
        ConfigError: it names the nearest.
    """
    if rule not in RULES:
        raise ConfigError(f"rule = {rule!r} is not known{nearest(rule, RULES)}")


__all__ = ["RULES", "Ensemble", "MeanOfProbabilities", "check_rule", "compiled"]
