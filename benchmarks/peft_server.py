"""PEFT on the serving benchmarks' workload: one adapter at a time."""

import argparse

import torch
from peft import PrefixTuningConfig, get_peft_model
from workload import Workload, gpt2_model

from foreword.prompts.soft_prompt import SoftPrompt


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
