"""What the vLLM tests share: tiny models that vLLM's CPU kernels take, prefixes of many lengths, and right answers."""

import dataclasses
import importlib.util
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from backbones import VOCAB, tokenizer

from foreword.artifact import save_prompt
from foreword.backbone import Backbone, wrap_backbone
from foreword.engines.prefix_files import PrefixFile, salt_of
from foreword.generate.offline import generate_ids
from foreword.prompts.batch import Row, pack, realise_all
from foreword.prompts.inject import activate
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.prompts.spec import PromptSpec

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING",
}
LENGTHS = (1, 2, 3, 5, 8, 13, 21, 31, 32, 33, 64, 65, 200, 96, 127, 128)  # four kinds in turn: 1 and 200 are prefixes
BLOCK = 32
TOLERANCE = 2e-5  # of log probabilities in float32


def need_vllm() -> None:
    """Skip the calling module where vLLM is not installed. `find_spec("vllm")` would find this very folder."""
    try:
        found = importlib.util.find_spec("vllm.version")
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip("vLLM is not installed here; `make test-vllm` runs these", allow_module_level=True)
    os.environ.update(ENVIRONMENT)


def gpt2() -> tf.PreTrainedModel:
    return tf.GPT2LMHeadModel(tf.GPT2Config(
        n_embd=128, n_layer=3, n_head=4, vocab_size=VOCAB, n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ))


def llama(kv_heads: int = 2) -> tf.PreTrainedModel:
    """Heads of 32 numbers, the least that vLLM's CPU attention takes."""
    return tf.LlamaForCausalLM(tf.LlamaConfig(
        hidden_size=128, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, vocab_size=VOCAB, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    ))


FAMILIES = {"gpt2": gpt2, "llama": llama, "llama_one_head": lambda: llama(1)}


def backbone_in(folder: Path, family: str) -> Backbone:
    """Return a frozen random backbone, saved where vLLM can load it, with clear margins between its greedy choices."""
    torch.manual_seed(0)
    model = FAMILIES[family]()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3.0)
    words = tokenizer()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return wrap_backbone(model, words, source=str(folder), weight_files=tuple(folder.glob("*.safetensors")))


def prompts_for(backbone: Backbone) -> dict[str, SoftPrompt]:
    """Return prefixes and prompt-tuned prompts (which export compiled) of lengths 1 to 200."""
    mlp, after = {"reparam": "mlp", "reparam_width": 8}, {"kind": "prompt", "placement": "after_bos"}
    kinds = ({}, {"kind": "prompt"}, mlp, after)
    specs = [PromptSpec(length=length, **kinds[i % len(kinds)]) for i, length in enumerate(LENGTHS)]
    return {f"{s.kind}-{s.placement}-{s.length}": drawn(backbone, s, seed) for seed, s in enumerate(specs)}


@torch.no_grad()
def drawn(backbone: Backbone, spec: PromptSpec, seed: int) -> SoftPrompt:
    """Return a prompt with values large enough to steer a random backbone."""
    prompt = make_prompt(spec, backbone)
    generator = torch.Generator().manual_seed(seed)
    for name, table in prompt.tables.items():
        table.draw(generator)
        std = float(backbone.model.get_input_embeddings().weight.std()) if name == "embedding" else 1.0
        table.set(torch.randn(table().shape, generator=generator) * std)
    return prompt.eval()


def saved(prompts: dict[str, SoftPrompt], backbone: Backbone, store: Path) -> Path:
    """Write the prompts as a store."""
    for name, prompt in prompts.items():
        save_prompt(prompt, store / name, backbone)
    return store


@dataclasses.dataclass
class Case:
    """A request, the answer that it gets alone through Transformers, and its form for vLLM."""

    ids: tuple[int, ...]
    prompt: SoftPrompt | None
    file: PrefixFile | None
    new: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)

    def wire(self) -> dict:
        if self.file is None:
            return {"prompt_token_ids": list(self.ids)}
        head = self.file.head
        ids = self.ids[1:] if head.includes_bos and self.ids[0] == 1 else self.ids
        ids = [head.placeholder] * head.length + list(ids)
        return {"prompt_token_ids": ids, "cache_salt": salt_of(self.file.digest)}


def cases_for(
    backbone: Backbone, prompts: dict[str, SoftPrompt], files: dict[str, PrefixFile], each: int, plain: int,
    seed: int = 0, new: int = 12,
) -> list[Case]:
    """Return `each` requests a prompt and `plain` ones, in a random order, with the right answers."""
    dice = random.Random(seed)
    made = []
    for name in [*list(prompts) * each, *[None] * plain]:
        lead = (1,) if dice.random() < 0.3 else ()
        ids = (*lead, *dice.choices(range(4, 98), k=dice.randint(2, 60)))
        made.append(Case(ids, prompts.get(name), files.get(name), dice.randint(1, new)))
    dice.shuffle(made)
    for case in made:
        solve(backbone, case)
    return made


@torch.no_grad()
def solve(backbone: Backbone, case: Case) -> None:
    """Fill in the answer of a request alone: greedy tokens by `generate`, their log probabilities by one full pass."""
    case.tokens = generate_ids(backbone, [Row(case.ids)], [case.prompt], max_new_tokens=case.new)[0]
    batch = pack(backbone, [Row(case.ids, (tuple(case.tokens),))], realise_all(backbone, [case.prompt]))
    with activate(batch.injection):
        logits = backbone.model(**batch.inputs, logits_to_keep=batch.predict_at, use_cache=False).logits[0]
    told = logits.float().log_softmax(-1)
    case.logprobs = [float(row[token]) for row, token in zip(told, case.tokens, strict=True)]


def run(llm, cases: list[Case]) -> list[SimpleNamespace]:
    """Send all cases to vLLM in one queue and return its answers."""
    from vllm import SamplingParams

    settings = [SamplingParams(temperature=0, max_tokens=case.new, logprobs=0) for case in cases]
    made = llm.generate([case.wire() for case in cases], settings, use_tqdm=False)
    return [
        SimpleNamespace(
            tokens=list(out.outputs[0].token_ids), reason=out.outputs[0].finish_reason,
            logprobs=[step[token].logprob for step, token in
                      zip(out.outputs[0].logprobs or [], out.outputs[0].token_ids, strict=True)],
        )
        for out in made
    ]


def check(cases: list[Case], answers: list[SimpleNamespace]) -> float:
    """Hold every answer to the right one and return the largest difference of a log probability."""
    wrong = [i for i, (case, got) in enumerate(zip(cases, answers, strict=True)) if case.tokens != got.tokens]
    assert not wrong, [(cases[i].file, cases[i].tokens, answers[i].tokens) for i in wrong[:3]]
    both = [zip(case.logprobs, got.logprobs, strict=True) for case, got in zip(cases, answers, strict=True)]
    return max(abs(ours - theirs) for pairs in both for ours, theirs in pairs)


def engine(backbone: Backbone, prefixes: Path, **options):
    """Return a running vLLM with the connector."""
    from vllm import LLM

    transfer = {"kv_connector": "ForewordConnector", "kv_role": "kv_both",
                "kv_connector_extra_config": {"prefix_dir": str(prefixes)}}
    settings = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "block_size": BLOCK,
                "enforce_eager": True, "disable_hybrid_kv_cache_manager": True, "disable_log_stats": False, **options}
    return LLM(model=backbone.source, kv_transfer_config=transfer, **settings)


def stop(llm) -> None:
    """End a vLLM's processes."""
    llm.llm_engine.engine_core.shutdown()
