"""The steerability probe: a short soft prompt on a task that is in no mixture and no evaluation set.

A decoder gets ten virtual tokens of keys and values at every layer (a prefix), an encoder-decoder ten embeddings in
front of the encoder; beside it the same steps of full fine-tuning. The task: records of lighthouses, a domain the
generators do not have, to sentences of their own manner. Self-contained on purpose: it judges backbones, not the
library's own training.
"""

import copy
import math
import random
import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from foreword.pretrain.batch import IGNORED, shift_right
from foreword.pretrain.copying.values import Lexicon, ValueMaker

_TEMPLATES = (
    "Sailors know {name} as the {colour} light off {coast}; {keeper} keeps it burning, {range} miles out to sea.",
    "Off {coast} burns {name}, a {colour} light seen {range} miles away and tended by {keeper}.",
    "{keeper} tends {name}, whose {colour} beam reaches {range} miles from {coast}.",
)


@dataclass(frozen=True)
class ProbeConfig:
    """Ten virtual tokens and 300 steps of 16 take about two minutes on two cores at 6 M parameters."""

    steps: int = 300
    batch: int = 16
    virtual_tokens: int = 10
    prompt_lr: float = 0.02
    fine_tune_lr: float = 1e-3
    test: int = 64
    seed: int = 0


def probe_examples(rng: random.Random, count: int) -> list[tuple[str, str, list[str]]]:
    """Return (record, sentence, values) triples of lighthouses with invented names."""
    maker, examples = ValueMaker(rng, Lexicon()), []
    for _ in range(count):
        values = {
            "name": maker.syllables(),
            "colour": rng.choice(("red", "green", "white", "amber", "blue")),
            "coast": f"{maker.syllables()} {rng.choice(('Head', 'Bay', 'Rock', 'Sound'))}",
            "keeper": f"{maker.syllables()} {maker.syllables()}",
            "range": maker.small(),
        }
        record = " | ".join(f"{key} : {value}" for key, value in values.items())
        examples.append((record, rng.choice(_TEMPLATES).format(**values), list(values.values())))
    return examples


class Prefix(nn.Module):
    """Virtual tokens in front of a frozen (or free) model: keys and values of a decoder, embeddings of a T5."""

    def __init__(self, model: PreTrainedModel, length: int, start_ids: Tensor) -> None:
        super().__init__()
        with torch.no_grad():  # the activations of real text are the start that works at every scale
            if model.config.is_encoder_decoder:
                rows = [model.get_input_embeddings()(start_ids[:length])]
            else:
                cache = model(input_ids=start_ids[None, :length], use_cache=True).past_key_values
                rows = [tensor[0] for layer in cache.layers for tensor in (layer.keys, layer.values)]
        self.length = length
        self.rows = nn.ParameterList(nn.Parameter(row.detach().clone()) for row in rows)

    def cache(self, batch: int) -> DynamicCache:
        """Return the prefix as a cache of `batch` rows."""
        cache = DynamicCache()
        for layer in range(len(self.rows) // 2):
            keys, values = (self.rows[2 * layer + i].expand(batch, -1, -1, -1) for i in (0, 1))
            cache.update(keys, values, layer)
        return cache


def logits_of(model: PreTrainedModel, prefix: Prefix | None, source: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return `[B, T, V]` logits for `target` given left-padded `source`; the first predicts the first target."""
    rows = len(source)
    if model.config.is_encoder_decoder:
        embeds = model.get_input_embeddings()(source)
        if prefix is not None:
            embeds = torch.cat([prefix.rows[0].expand(rows, -1, -1), embeds], dim=1)
            mask = torch.cat([mask.new_ones(rows, prefix.length), mask], dim=1)
        started = torch.from_numpy(shift_right(target.cpu().numpy(), 0)).to(target.device)
        return model(inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=started).logits
    text = torch.cat([source, target[:, :-1]], dim=1)
    whole = torch.cat([mask, mask.new_ones(rows, target.shape[1] - 1)], dim=1)
    positions = (whole.cumsum(1) - 1).clamp(min=0) + (prefix.length if prefix is not None else 0)
    if prefix is not None:
        whole = torch.cat([mask.new_ones(rows, prefix.length), whole], dim=1)
    output = model(
        input_ids=text,
        attention_mask=whole,
        position_ids=positions,
        past_key_values=prefix.cache(rows) if prefix is not None else None,
        use_cache=prefix is not None,
    )
    return output.logits[:, source.shape[1] - 1 :]


class Task:
    """Tokenised probe examples: record, end of text (decoders), sentence, end of text."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, decoder: bool, device: torch.device) -> None:
        self.tokenizer, self.decoder, self.device = tokenizer, decoder, device
        self.end = int(tokenizer.eos_token_id)

    def tensors(self, examples: list[tuple[str, str, list[str]]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return (source `[B, T]` padded left, its mask, target `[B, T]` padded right with -100)."""
        sources = [self.tokenizer(record)["input_ids"] + [self.end] for record, _, _ in examples]
        targets = [self.tokenizer(sentence)["input_ids"] + [self.end] for _, sentence, _ in examples]
        width, length = max(map(len, sources)), max(map(len, targets))
        source = torch.tensor([[0] * (width - len(row)) + row for row in sources], device=self.device)
        target = torch.tensor([row + [IGNORED] * (length - len(row)) for row in targets], device=self.device)
        return source, (source != 0).long(), target


def run_probe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: ProbeConfig) -> dict[str, float]:
    """Return `prefix_*` and `fine_tune_*` scores: `copied` (share of values in the output) and `bleu` (0 to 100).

    The model given is not changed.
    """
    scores: dict[str, float] = {}
    for kind in ("prefix", "fine_tune"):
        learner = copy.deepcopy(model).float().eval()
        for name, score in _learn(learner, tokenizer, config, kind == "prefix").items():
            scores[f"{kind}_{name}"] = round(score, 4)
    return scores


def _learn(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, config: ProbeConfig, frozen: bool
) -> dict[str, float]:
    task = Task(tokenizer, not model.config.is_encoder_decoder, next(model.parameters()).device)
    rng = random.Random(config.seed)
    examples = probe_examples(rng, 1000 + config.test)
    train, test = examples[config.test :], examples[: config.test]
    model.requires_grad_(not frozen)
    prefix = None
    if frozen:
        start = torch.tensor(
            tokenizer(" ".join(text for record, sentence, _ in train[:2] for text in (record, sentence)))["input_ids"]
        )
        prefix = Prefix(model, config.virtual_tokens, start.to(task.device)).to(task.device)
    learned = list(prefix.parameters()) if prefix is not None else list(model.parameters())
    rate = config.prompt_lr if frozen else config.fine_tune_lr
    optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=0.0)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / config.steps)
        source, mask, target = task.tensors(rng.sample(train, config.batch))
        logits = logits_of(model, prefix, source, target.clamp(min=0), mask)
        loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    outputs = decode_greedy(model, prefix, task, test)
    copied = [value in output for output, (_, _, values) in zip(outputs, test, strict=True) for value in values]
    return {
        "loss": float(loss.detach()),
        "copied": sum(copied) / len(copied),
        "bleu": bleu(outputs, [e[1] for e in test]),
    }


@torch.no_grad()
def decode_greedy(
    model: PreTrainedModel, prefix: Prefix | None, task: Task, examples: list[tuple[str, str, list[str]]]
) -> list[str]:
    """Return greedy outputs of at most 64 tokens; without a cache of the text, which keeps it short and plain."""
    source, mask, _ = task.tensors(examples)
    target = torch.zeros(len(examples), 1, dtype=torch.long, device=source.device)
    for step in range(64):
        chosen = logits_of(model, prefix, source, target, mask)[:, step].argmax(-1)
        target[:, step] = chosen
        if bool((target == task.end).any(1).all()):
            break
        target = functional.pad(target, (0, 1))
    rows = [row.tolist() for row in target]
    return [task.tokenizer.decode(row[: row.index(task.end)] if task.end in row else row) for row in rows]


def bleu(outputs: list[str], references: list[str]) -> float:
    """Return corpus BLEU-4 (0 to 100) over words and punctuation, one reference each (Papineni et al. 2002)."""
    split = [[re.findall(r"\w+|[^\w\s]", text) for text in side] for side in (outputs, references)]
    ours, theirs = (sum(map(len, side)) for side in split)
    logs = 0.0
    for n in range(1, 5):
        hit = total = 0
        for out, ref in zip(*split, strict=True):
            grams, known = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (out, ref))
            hit, total = hit + sum((grams & known).values()), total + sum(grams.values())
        if not hit:
            return 0.0
        logs += math.log(hit / total) / 4
    return 100 * math.exp(logs + min(0.0, 1 - theirs / max(ours, 1)))
