"""What a model makes of a template with trigger words in it: losses, answers, gradients, the head's input.

A row's loss is -log of the probability of its label, summed over the label's words (RECIPES 4), or -log p of all
tokens of its target where there are no label words.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.baselines.autoprompt.masked import MaskedBackbone
from foreword.baselines.autoprompt.template import ANSWER, SLOT, Kind
from foreword.errors import PromptError
from foreword.frozen import decoder_of, find_head
from foreword.prompts.batch import Row
from foreword.prompts.padded import pad_targets
from foreword.shapes import Float, Int


@dataclass(frozen=True)
class TriggerExample:
    """One row: what is read, SLOT and ANSWER at the marks, and what is wanted.

    Attributes:
        ids: of the template with the source in it.
        target: wanted tokens; one placeholder where the answer is read as a label word.
        label: the wanted label, None where the target is wanted as it is written.
    """

    ids: tuple[int, ...]
    target: tuple[int, ...]
    label: str | None = None


@dataclass(frozen=True, eq=False)
class Judged:
    """What a batch came to: [B] losses in nats, and [B] whether the label was right (None without label words)."""

    losses: Float[Tensor, " B"]
    correct: Tensor | None


@dataclass(eq=False)
class Reader:
    """A frozen model that reads templates.

    Attributes:
        backbone: decoder-only, encoder-decoder, or masked.
        labels: label to the ids of its words; empty where targets are scored as they are written.
    """

    backbone: Backbone
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """The kind of model, which decides where it answers."""
        return kind_of(self.backbone)

    def embeddings(self) -> Float[Tensor, "V E"]:
        """Return what the model reads for each token id, its own scaling included."""
        size = self.backbone.model.get_input_embeddings().weight.shape[0]
        return self.backbone.embed(torch.arange(size, device=self.backbone.device))

    @torch.no_grad()
    def judge(self, examples: Sequence[TriggerExample], trigger: Sequence[int]) -> Judged:
        """Return every row's loss, and whether its label came out most probable.

        Args:
            examples: B rows.
            trigger: K ids, one for each slot; none leaves the slots out.
        """
        return self._judged(examples, self._answers(examples, trigger))

    def gradient(
        self, examples: Sequence[TriggerExample], trigger: Sequence[int]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "K E"]]:
        """Return the summed loss of the rows, and its gradient with respect to the K trigger embeddings."""
        words = self.backbone.embed(torch.tensor(trigger, device=self.backbone.device)).detach().requires_grad_(True)
        with torch.enable_grad():
            loss = self._judged(examples, self._answers(examples, trigger, words)).losses.sum()
            (gradient,) = torch.autograd.grad(loss, words)
        return loss.detach(), gradient

    @torch.no_grad()
    def answers(self, examples: Sequence[TriggerExample], trigger: Sequence[int]) -> Float[Tensor, "B V"]:
        """Return the logits at each row's first answer token."""
        return self._answers([_first_token(example) for example in examples], trigger).logits()

    @torch.no_grad()
    def next_logits(self, examples: Sequence[TriggerExample], trigger: Sequence[int]) -> Float[Tensor, "B V"]:
        """Return the logits at each row's last answer token, the model having read the ones before it."""
        ends = torch.tensor([len(example.target) for example in examples]).cumsum(0) - 1
        return self._answers(examples, trigger).logits()[ends.to(self.backbone.device)]

    @torch.no_grad()
    def probabilities(self, examples: Sequence[TriggerExample], trigger: Sequence[int]) -> Float[Tensor, "B labels"]:
        """Return the log of each label's probability, summed over its words, labels in their order."""
        return self._label_scores(self.answers(examples, trigger))

    @torch.no_grad()
    def head_inputs(self, examples: Sequence[TriggerExample], trigger: Sequence[int]) -> Float[Tensor, "B E"]:
        """Return what the output layer is given at each row's first answer token, captured as it enters."""
        seen: list[Tensor] = []
        output = self.backbone.model.get_output_embeddings()
        hook = output.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            answered = self._answers([_first_token(example) for example in examples], trigger, whole=True)
        finally:
            hook.remove()
        return seen[-1][answered.rows, answered.places]

    def _judged(self, examples: Sequence[TriggerExample], answered: "_Answered") -> Judged:
        if not self.labels:
            losses = answered.losses(examples)
            sums = losses.new_zeros(len(examples)).index_add(0, answered.rows, losses)
            return Judged(sums, None)
        scores = self._label_scores(answered.logits())
        names = list(self.labels)
        wanted = torch.tensor([names.index(example.label or "") for example in examples], device=scores.device)
        picked = -scores.gather(1, wanted[:, None])[:, 0]
        return Judged(picked, scores.argmax(-1) == wanted)

    def _label_scores(self, logits: Tensor) -> Tensor:
        log_p = logits.float().log_softmax(-1)
        return torch.stack([log_p[:, list(ids)].logsumexp(-1) for ids in self.labels.values()], dim=1)

    def _answers(
        self,
        examples: Sequence[TriggerExample],
        trigger: Sequence[int],
        words: Tensor | None = None,
        whole: bool = False,
    ) -> "_Answered":
        """Return the model's states at all answer tokens.

        Args:
            examples: B rows.
            trigger: K ids.
            words: [K, E] embeddings that stand for the trigger words; None takes the ids' own.
            whole: run the model with its output layer, so that a hook on it sees its input.
        """
        examples = examples if trigger else [without_slots(example) for example in examples]
        reads = [fill(example, trigger, self._mask_id) for example in examples]
        places = [_answer_places(example, self.kind) for example in examples]
        if self.kind == "decoder":  # it reads its own answer, all but the last token
            reads = [ids + example.target[:-1] for ids, example in zip(reads, examples, strict=True)]
        inputs = self._inputs(reads, examples, trigger, words)
        device = self.backbone.device
        rows = torch.tensor([i for i, found in enumerate(places) for _ in found], device=device)
        columns = torch.tensor([place for found in places for place in found], device=device)
        states, is_hidden = self._run(inputs, examples, whole)
        return _Answered(self.backbone, states, is_hidden, rows, columns)

    @property
    def _mask_id(self) -> int | None:
        return self.backbone.tokenizer.mask_token_id if self.kind == "masked" else None

    def _inputs(
        self, reads: list[tuple[int, ...]], examples: Sequence[TriggerExample], trigger: Sequence[int],
        words: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return ids or embeddings padded on the right, and the mask."""
        longest, limit = max(map(len, reads)), self.backbone.geometry.max_positions
        if limit is not None and longest > limit:
            raise PromptError(f"a row has {longest} tokens, the backbone {limit} positions; lower data.max_source")
        ids = torch.full((len(reads), longest), self.backbone.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(reads):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        ids, mask = ids.to(self.backbone.device), mask.to(self.backbone.device)
        if words is None:
            return {"input_ids": ids, "attention_mask": mask}
        slots = torch.tensor([_slots(example) for example in examples], device=ids.device)
        rows = torch.arange(len(reads), device=ids.device)[:, None]
        embeds = self.backbone.embed(ids).detach().clone()
        embeds[rows.expand_as(slots), slots] = words.expand(len(reads), *words.shape)
        return {"inputs_embeds": embeds, "attention_mask": mask}

    def _run(
        self, inputs: dict[str, Tensor], examples: Sequence[TriggerExample], whole: bool
    ) -> tuple[Tensor, bool]:
        """Return hidden states [B, T, E] and True, or logits [B, T, V] and False."""
        model = self.backbone.model
        if self.kind == "masked":
            return model(**inputs).logits, False
        head = None if whole else find_head(self.backbone)
        if self.kind == "encoder_decoder":
            decoder_ids, _, _ = pad_targets(self.backbone, [Row((0,), (example.target,)) for example in examples])
            encoded = model.get_encoder()(**inputs)
            rest = {"attention_mask": inputs["attention_mask"], "decoder_input_ids": decoder_ids}
            if head is None:
                return model(encoder_outputs=encoded, **rest, use_cache=False).logits, False
            found = decoder_of(self.backbone)(
                input_ids=decoder_ids, encoder_hidden_states=encoded.last_hidden_state,
                encoder_attention_mask=inputs["attention_mask"], use_cache=False,
            )
            return found.last_hidden_state, True
        if head is None:
            return model(**inputs, use_cache=False).logits, False
        return decoder_of(self.backbone)(**inputs, use_cache=False).last_hidden_state, True


@dataclass(frozen=True, eq=False)
class _Answered:
    """States of a batch and where its answers stand: `states[rows, places]` are the M answer tokens'."""

    backbone: Backbone
    states: Tensor
    is_hidden: bool
    rows: Int[Tensor, " M"]
    places: Int[Tensor, " M"]

    def logits(self) -> Float[Tensor, "M V"]:
        """Return the logits of all answer tokens."""
        chosen = self.states[self.rows, self.places]
        return find_head(self.backbone).logits(chosen) if self.is_hidden else chosen

    def losses(self, examples: Sequence[TriggerExample]) -> Float[Tensor, " M"]:
        """Return -log p of every target token."""
        wanted = torch.tensor([token for example in examples for token in example.target], device=self.rows.device)
        chosen = self.states[self.rows, self.places]
        if self.is_hidden:
            return find_head(self.backbone).losses(chosen, wanted)
        return torch.nn.functional.cross_entropy(chosen.float(), wanted, reduction="none")


def kind_of(backbone: Backbone) -> Kind:
    """Return what kind of model a backbone is."""
    if isinstance(backbone, MaskedBackbone):
        return "masked"
    return "encoder_decoder" if backbone.is_encoder_decoder else "decoder"


def fill(example: TriggerExample, trigger: Sequence[int], mask_id: int | None = None) -> tuple[int, ...]:
    """Return the row's ids with the trigger words in their slots.

    Args:
        example: a row with K slots.
        trigger: K ids.
        mask_id: what stands at the answer of a masked model.

    Raises:
        PromptError: the number of ids is not the number of slots.
    """
    slots = example.ids.count(SLOT)
    if len(trigger) != slots:
        raise PromptError(f"{len(trigger)} trigger words for {slots} slots; give one for each")
    words = iter(trigger)
    return tuple(next(words) if token == SLOT else mask_id if token == ANSWER else token for token in example.ids)


def without_slots(example: TriggerExample) -> TriggerExample:
    """Return the row as it is read without any trigger word: what a trigger is compared with."""
    return dataclasses.replace(example, ids=tuple(token for token in example.ids if token != SLOT))


def _first_token(example: TriggerExample) -> TriggerExample:
    return dataclasses.replace(example, target=example.target[:1])


def _slots(example: TriggerExample) -> list[int]:
    return [place for place, token in enumerate(example.ids) if token == SLOT]


def _answer_places(example: TriggerExample, kind: Kind) -> list[int]:
    """Return where the states stand that predict the target's tokens."""
    if kind == "masked":
        return [example.ids.index(ANSWER)]
    start = 0 if kind == "encoder_decoder" else len(example.ids) - 1
    return list(range(start, start + len(example.target)))
