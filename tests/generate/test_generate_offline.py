"""Generation's options and refusals: when a row stops, and what is said where nothing can be generated."""

import copy
import dataclasses
import threading

import pytest
import torch
from backbones import tokenizer

from foreword.data.examples import Example
from foreword.data.records import Record
from foreword.errors import ConfigError, DataError, ForewordError, PromptError
from foreword.generate import generate, generate_ids, logits
from foreword.prompts.batch import Row
from foreword.prompts.soft_prompt import compile_prompt, make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.train.job import train_prompt
from foreword.train.optim import OptimConfig

EOS = 2


@pytest.mark.parametrize("known", [None, 97, [96, 97]])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_stops_at_the_tokenizers_eos_whatever_the_models_generation_config_says(known, beams, backbone_of):
    """Every target ends with the tokenizer's EOS, so that is what a prompt learns to stop with (law 10)."""
    backbone = dataclasses.replace(backbone_of("gpt2"), model=copy.deepcopy(backbone_of("gpt2").model))
    backbone.model.generation_config.eos_token_id = known
    examples = [Example((10, 11), (20, 21, EOS)), Example((12, 13), (22, 23, 24, 25, EOS))]
    prompt = train_prompt(backbone, examples, PromptSpec(length=8), steps=150, optim=OptimConfig(lr=0.03)).prompt
    seen = []
    hook = backbone.model.register_forward_hook(lambda *_: seen.append(1))
    rows = [Row(example.source_ids) for example in examples]
    made = generate_ids(backbone, rows, [prompt] * 2, max_new_tokens=12, num_beams=beams)
    hook.remove()
    assert [tuple(ids) for ids in made] == [example.target_ids for example in examples]
    assert beams > 1 or len(seen) == 5, "generation went on after every row had stopped"


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_stop_strings_end_each_row_alone(family, backbone_of):
    backbone, texts = backbone_of(family), ["abc", "d", "xyz"]
    plain = generate_ids(backbone, [Row(tuple(backbone.tokenizer(t).input_ids)) for t in texts], [None] * 3,
                         max_new_tokens=12)  # fmt: skip
    stop = backbone.tokenizer.decode(plain[0][3])
    rows = [Row(tuple(backbone.tokenizer(text).input_ids)) for text in texts]
    made = generate_ids(backbone, rows, [None] * 3, max_new_tokens=12, stop_strings=[stop])
    for ids, whole in zip(made, plain, strict=True):
        at = next((i for i, token in enumerate(whole) if stop in backbone.tokenizer.decode(token)), len(whole))
        assert ids == whole[: at + 1]
    assert len(made[0]) <= 4 < len(plain[0])
    assert generate(backbone, texts, max_new_tokens=12, stop_strings=[stop])[0].endswith(stop)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 0}, "num_beams = 0 must be at least 1"),
        ({"batch_size": 0}, "batch_size = 0 must be at least 1"),
        ({"batch_size": -1}, "batch_size = -1 must be at least 1"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"cache_implementation": "statc"}, "cache_implementation"),
        ({"do_sample": True, "seed": -1}, "seed = -1"),
        ({"do_sample": True, "seed": 2**64}, "seed = 18446744073709551616"),
    ],
)
def test_options_that_cannot_work_are_one_line(options, said, backbone_of):
    with pytest.raises(ConfigError, match=said) as caught:
        generate(backbone_of("llama"), ["abc"], max_new_tokens=2, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda b: generate(b, ["abc", 5]), r"texts\[1\] = 5 is a int, not a text"),
        (lambda b: generate(b, ["abc"], ["a-dir"]), r"prompts\[0\] = 'a-dir' is no prompt; load .* load_prompt"),
        (lambda b: generate(b, ["abc"], "a-dir"), "prompts = 'a-dir' is a name, not a prompt"),
        (lambda b: logits(b, ["abc"], targets=["x", "y"]), "1 texts but 2 targets"),
        (lambda b: logits(b, ["abc"], targets="x"), "targets is one string"),
        (lambda b: logits(b, ["abc", "d"], targets=["x", ""]), "target 1 has no token"),
    ],
)
def test_what_is_no_text_or_prompt_is_named(call, said, backbone_of):
    with pytest.raises(PromptError, match=said):
        call(backbone_of("t5"))


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_no_texts_give_no_results(family, backbone_of):
    assert generate(backbone_of(family), []) == [] == logits(backbone_of(family), [], targets=[])


def test_callers_may_set_what_we_set(backbone_of):
    plain = generate(backbone_of("llama"), ["abc"], max_new_tokens=3)
    assert generate(backbone_of("llama"), ["abc"], max_new_tokens=3, pad_token_id=3) == plain
    assert issubclass(ConfigError, ForewordError) and torch.is_grad_enabled()


def test_seeded_samples_do_not_depend_on_other_threads(backbone_of):
    """Transformers draws from one generator for all threads."""
    backbone, made = backbone_of("llama"), {seed: [] for seed in range(4)}

    def sample(seed):
        return generate(backbone, ["abc"], do_sample=True, seed=seed, max_new_tokens=8)[0]

    before = torch.random.get_rng_state()
    threads = [threading.Thread(target=lambda s=seed: made[s].extend(sample(s) for _ in range(4))) for seed in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == {seed: [sample(seed)] * 4 for seed in made}
    assert len({texts[0] for texts in made.values()}) > 1
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_token_without_an_embedding_is_named(backbone_of):
    """A tokenizer with an added token, in front of a model whose embeddings were not resized."""
    wide = tokenizer()
    wide.add_tokens(["<new>"])
    backbone = dataclasses.replace(backbone_of("llama"), tokenizer=wide)
    with pytest.raises(PromptError, match="text 1 has token '<new>' with id 99, the backbone has 99 embeddings"):
        generate(backbone, ["ab", "a<new>b"])
    with pytest.raises(PromptError, match="record 'r' has token '<new>'"):
        train_prompt(backbone, [Record("a<new>", ("x",), "r")], PromptSpec(length=2), steps=1)


@pytest.mark.parametrize("other", ["gpt2", "qwen3", "t5"])
def test_a_compiled_prefix_of_another_backbone_is_refused(other, backbone_of):
    kv = compile_prompt(make_prompt(PromptSpec(length=3), backbone_of(other)), backbone_of(other))
    with pytest.raises(PromptError, match="this prefix does not fit backbone 'tests/llama'"):
        generate(backbone_of("llama"), ["abc"], kv)


@pytest.mark.parametrize("data", [[("a", "b")], [{"source": "a"}], [Record("a", ("b",)), Example((5,), (2,))]])
def test_data_in_memory_of_another_kind_is_named(data, backbone_of):
    with pytest.raises(DataError, match="give Records"):
        train_prompt(backbone_of("llama"), data, PromptSpec(length=2), steps=1)
