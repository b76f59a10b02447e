"""Who serves the same prefixes to the same requests: Foreword's engine, and PEFT one adapter at a time."""

import argparse
import random
from dataclasses import dataclass, field

import torch
from contenders import gpt2_model
from peft import PrefixTuningConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from foreword.backbone import wrap_backbone
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.serve.capacity import Capacity
from foreword.serve.engine import Engine
from foreword.serve.pool import Pool
from foreword.serve.request import Request


@dataclass
class Workload:
    """Requests of 8 to 32 tokens, all with `new_tokens` to make; prefixes of 10, 20, 50 and 100 tokens in turn."""

    requests: int
    new_tokens: int
    lengths: tuple[int, ...] = (10, 20, 50, 100)
    texts: list[tuple[int, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        dice = random.Random(0)
        self.texts = [tuple(dice.choices(range(1000, 50000), k=dice.randint(8, 32))) for _ in range(self.requests)]


class Ours:
    """The engine, with `count` prefixes (0 for none)."""

    def __init__(self, args: argparse.Namespace, work: Workload, count: int, lengths: tuple[int, ...]) -> None:
        words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, "x")), eos_token="x")
        self.backbone = wrap_backbone(gpt2_model("float32", args.device, args.layers), words)
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


class Peft:
    """PEFT with the same prefixes: one adapter at a time, its requests in padded batches."""

    def __init__(self, args: argparse.Namespace, work: Workload, prompts: list[SoftPrompt]) -> None:
        self.work, self.batch, self.device = work, args.requests, args.device
        base = gpt2_model("float32", args.device, args.layers).eval()
        base.generation_config.eos_token_id = None
        for number, prompt in enumerate(prompts):
            config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prompt.length)
            if number == 0:
                self.model = get_peft_model(base, config, adapter_name="p0")
            else:
                self.model.add_adapter(f"p{number}", config)
            self.model.prompt_encoder[f"p{number}"].embedding.weight.data.copy_(prompt.table("decoder"))
        self.model.eval()
        self.groups = [list(range(n, work.requests, len(prompts))) for n in range(len(prompts))]

    @torch.no_grad()
    def run(self) -> list[list[int]]:
        """Return all answers' tokens."""
        made: dict[int, list[int]] = {}
        for number, group in enumerate(self.groups):
            self.model.set_adapter(f"p{number}")
            for at in range(0, len(group), self.batch):
                made |= self._batch(group[at : at + self.batch])
        return [made[n] for n in range(self.work.requests)]

    def _batch(self, members: list[int]) -> dict[int, list[int]]:
        texts = [self.work.texts[n] for n in members]
        longest = max(map(len, texts))
        ids = torch.tensor([[0] * (longest - len(t)) + list(t) for t in texts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(t)) + [1] * len(t) for t in texts], device=self.device)
        options = {"max_new_tokens": self.work.new_tokens, "do_sample": False, "pad_token_id": 0}
        out = self.model.generate(input_ids=ids, attention_mask=mask, **options)
        return dict(zip(members, out[:, longest:].tolist(), strict=True))
