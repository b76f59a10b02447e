"""Foreword's engine on the serving benchmarks' workload."""

import argparse

import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from workload import Workload, gpt2_model

from foreword.backbone import Backbone, wrap_backbone
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.serve.capacity import Capacity
from foreword.serve.engine import Engine
from foreword.serve.pool import Pool
from foreword.serve.request import Request


def gpt2_backbone(args: argparse.Namespace) -> Backbone:
    """Return the benchmarks' model; where engines are compared they share it, for not all memory is equally fast."""
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, "x")), eos_token="x")
    return wrap_backbone(gpt2_model("float32", args.device, args.layers), words)


class Ours:
    """The engine, with `count` prefixes (0 for none)."""

    def __init__(
        self, args: argparse.Namespace, work: Workload, count: int, lengths: tuple[int, ...], backbone: Backbone
    ) -> None:
        self.backbone = backbone
        self.pool, self.prompts = Pool(self.backbone, 4 << 30), []
        for number in range(count):
            self.prompts.append(self._drawn(PromptSpec(length=lengths[number % len(lengths)]), number))
            self.pool.register(f"p{number}", self.prompts[-1], pinned=True)
        names = [f"p{n % count}" if count else None for n in range(work.requests)]
        options = {"max_tokens": work.new_tokens, "ignore_eos": True}
        self.requests = [Request(text, name, **options) for text, name in zip(work.texts, names, strict=True)]
        capacity = Capacity(rows=args.requests, step_tokens=1024, cache_bytes=8 << 30)
        self.engine = Engine(self.backbone, self.pool, capacity).start()

    def _drawn(self, spec: PromptSpec, seed: int) -> SoftPrompt:
        prompt = make_prompt(spec, self.backbone).eval()
        prompt.table("decoder").data.normal_(generator=torch.Generator().manual_seed(seed))
        return prompt

    def run(self) -> list[list[int]]:
        """Return all answers' tokens."""
        return [list(answers[0].token_ids) for answers in self.engine.generate(self.requests)]

    def close(self) -> None:
        """Stop the threads."""
        self.engine.stop()
        self.pool.close()
