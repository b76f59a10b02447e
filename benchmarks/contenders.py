"""Two ways to train the same prefix on the same rows: Foreword's loss, and a plain loop over PEFT."""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Tokenizer, PreTrainedModel

from foreword.backbone import wrap_backbone
from foreword.data.batches import collate
from foreword.data.examples import FORMATS, Example, tokenise
from foreword.data.files import data_file
from foreword.prompts.batch import Row
from foreword.prompts.init import draw_undirected
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.tasks import get_task
from foreword.train.loss import target_loss

PREFIX_LEN, MLP_WIDTH, LEARNING_RATE = 5, 512, 1e-5


@dataclass(frozen=True)
class E2ERows:
    """The E2E training set as tokens, one example a reference."""

    tokenizer: GPT2Tokenizer
    examples: list[Example]

    @classmethod
    def load(cls) -> "E2ERows":
        """Return the rows in the papers' text format; needs the folder of public data."""
        folder = data_file("tokenizers/gpt2/vocab.json", "any GPT-2 checkpoint").parent
        tokenizer = GPT2Tokenizer.from_pretrained(folder)
        return cls(tokenizer, tokenise(get_task("e2e").load("train"), tokenizer, FORMATS["paper"]).examples)

    def batches(self, count: int, rows: int, grouped: bool, seed: int = 0) -> list[list[Example]]:
        """Return `count` batches of `rows` examples: drawn freely, or all references of one source after another."""
        generator = random.Random(seed)
        order = generator.sample(self.examples, len(self.examples))
        if grouped:
            by_source: dict[tuple[int, ...], list[Example]] = {}
            for example in order:
                by_source.setdefault(example.source_ids, []).append(example)
            order = [example for group in by_source.values() for example in group]
        return [order[at : at + rows] for at in range(0, count * rows, rows)]


class Contender(Protocol):
    """One way to train."""

    def loss(self, batch: Sequence[Example]) -> Tensor:
        """Return the mean loss over the batch's target tokens."""
        ...

    def step(self, batch: Sequence[Example]) -> None:
        """Take one AdamW step."""
        ...


class _Stepping:
    optimizer: torch.optim.Optimizer

    def step(self, batch: Sequence[Example]) -> None:
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


class Ours(_Stepping):
    """Foreword: packed rows; with `share`, all references of a source in one row."""

    def __init__(self, model: PreTrainedModel, data: E2ERows, share: bool) -> None:
        self.backbone, self.share = wrap_backbone(model, data.tokenizer), share
        spec = PromptSpec(length=PREFIX_LEN, reparam="mlp", reparam_width=MLP_WIDTH)
        self.prompt = make_prompt(spec, self.backbone)
        draw_undirected(self.prompt, torch.Generator().manual_seed(0))
        self.optimizer = torch.optim.AdamW(self.prompt.parameters(), lr=LEARNING_RATE, fused=True)

    def loss(self, batch: Sequence[Example]) -> Tensor:
        """Return the mean loss over target tokens."""
        rows = [Row(example.source_ids, (example.target_ids,)) for example in batch]
        if self.share:
            targets: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
            for example in batch:
                targets.setdefault(example.source_ids, []).append(example.target_ids)
            rows = [Row(source, tuple(group)) for source, group in targets.items()]
        loss = target_loss(self.backbone, rows, [self.prompt] * len(rows))
        return loss.sum / loss.num_tokens


class Peft(_Stepping):
    """PEFT's prefix tuning in a plain loop: rows padded on the right, labels -100 where there is no target."""

    def __init__(self, model: PreTrainedModel, data: E2ERows) -> None:
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=PREFIX_LEN,
            prefix_projection=True,
            encoder_hidden_size=MLP_WIDTH,
        )
        self.model, self.pad_id = get_peft_model(model, config), data.tokenizer.eos_token_id
        self.device = model.device
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def loss(self, batch: Sequence[Example]) -> Tensor:
        """Return the model's own loss, which is the mean over target tokens too."""
        inputs = collate(batch, self.pad_id)
        return self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()}).loss


def gradient_difference(model: PreTrainedModel, data: E2ERows, batch: Sequence[Example], name: str) -> float:
    """Return |ours - PEFT's| / |PEFT's| over the gradients of all trained weights, which are the same in both."""
    theirs = Peft(copy.deepcopy(model), data)
    ours = Ours(copy.deepcopy(model), data, share=name.endswith("sources"))
    encoder, table = theirs.model.prompt_encoder["default"], ours.prompt.tables["decoder"]
    pairs = [(table.inputs, encoder.embedding.weight)]
    for mine, other in ((table.inner, encoder.transform[0]), (table.outer, encoder.transform[2])):
        pairs += [(mine.weight, other.weight), (mine.bias, other.bias)]
    with torch.no_grad():
        for mine, other in pairs:
            mine.copy_(other)
    ours.loss(batch).backward()
    theirs.loss(batch).backward()
    difference = torch.cat([(mine.grad - other.grad).double().flatten() for mine, other in pairs])
    return float(difference.norm() / torch.cat([other.grad.double().flatten() for _, other in pairs]).norm())
