"""One test for each defect that was found in PEFT 0.21 (D1 to D10, D14, D17): ours does it right.

Here D1 to D7, batches and training; D8 to D17 are in test_peft_defects_use.py.

What PEFT does today is printed as a note (`pytest -s`) where it is cheap to see; nothing depends on it.
"""

import concurrent.futures

import peft
import pytest
import torch
import transformers as tf
from backbones import DECODERS, VOCAB, make, tokenizer
from peers import HARMLESS, ROWS, TEXTS, fresh_peft, gap, gradients, made, note, peft_generate, plain_copy, tried

from foreword.artifact import load_prompt, save_prompt
from foreword.backbone import wrap_backbone
from foreword.generate import generate, logits
from foreword.generate.offline import generate_ids
from foreword.prompts.attention import AttentionCall
from foreword.prompts.batch import Row
from foreword.prompts.spec import PromptSpec
from foreword.train.loss import target_loss

pytestmark = [pytest.mark.filterwarnings(message) for message in HARMLESS]
NEW_LEN = 8
FIXED_LEN = {"max_new_tokens": NEW_LEN, "min_new_tokens": NEW_LEN}
PREFIX, MLP = PromptSpec(length=5), PromptSpec(length=5, reparam="mlp", reparam_width=24)
PROMPT = PromptSpec(kind="prompt", length=4)
SUFFIX = PromptSpec(kind="prompt", length=4, placement="suffix")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_d1_rows_of_one_batch_have_prompts_of_their_own(backbone_of, measure, family):
    backbone = backbone_of(family)
    prompts = [made(backbone, PREFIX), None, made(backbone, PROMPT, 1), made(backbone, MLP, 2)]
    mixed = logits(backbone, TEXTS, prompts)
    alone = [logits(backbone, [text], [prompt])[0] for text, prompt in zip(TEXTS, prompts, strict=True)]
    measure("D1 mixed rows", family, gap(mixed, alone))
    written = generate(backbone, TEXTS, prompts, max_new_tokens=NEW_LEN)
    pairs = zip(TEXTS, prompts, strict=True)
    assert written == [generate(backbone, [text], [prompt], max_new_tokens=NEW_LEN)[0] for text, prompt in pairs]
    assert len({tuple(out[-1].tolist()) for out in logits(backbone, [TEXTS[0]] * 4, prompts)}) == 4

    theirs = fresh_peft(backbone, "prefix")
    theirs.add_adapter("other", peft.PrefixTuningConfig("CAUSAL_LM", num_virtual_tokens=5))
    ids = torch.full((2, 3), 9)
    with torch.no_grad():
        out = tried(lambda: gap(*theirs(input_ids=ids, adapter_names=["default", "other"]).logits.chunk(2)))
    note(f"D1 PEFT, one text under two prompts of one batch: logits differ by {out}")


@pytest.mark.parametrize("kind", [PREFIX, PROMPT, SUFFIX], ids=["prefix", "prompt", "suffix"])
@pytest.mark.parametrize("family", DECODERS)
def test_d2_left_padding_changes_no_generated_token(backbone_of, family, kind):
    backbone = backbone_of(family)
    prompt = made(backbone, kind)
    rows = [Row(tuple(range(5 + 7 * i, 5 + 7 * i + length))) for i, length in enumerate((1, 30, 4, 9, 17))]
    batched = generate_ids(backbone, rows, [prompt] * len(rows), **FIXED_LEN)
    assert batched == [generate_ids(backbone, [row], [prompt], **FIXED_LEN)[0] for row in rows]


def test_d2_note_on_peft(backbone_of):
    backbone = backbone_of("gpt2")
    theirs = fresh_peft(backbone, "prompt")
    rows = [list(range(5, 5 + length)) for length in (1, 30, 4, 9, 17)]
    ids = torch.tensor([[0] * (30 - len(row)) + row for row in rows])
    out = theirs.generate(input_ids=ids, attention_mask=(ids > 0).long(), do_sample=False, **FIXED_LEN)[:, -NEW_LEN:]
    equal = sum(peft_generate(theirs, row, NEW_LEN) == new for row, new in zip(rows, out.tolist(), strict=True))
    note(f"D2 PEFT, prompt tuning on gpt2: {equal} of {len(rows)} rows are the same padded and alone")
    assert len(out) == len(rows)


def checkpoint(model) -> None:
    """Switch gradient checkpointing on, under the name that this version of Transformers has for it."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def checkpointing(family):
    """Return a backbone of its own with gradient checkpointing on, in training mode."""
    backbone = make(family)
    checkpoint(backbone.model)
    backbone.model.train()
    assert any(getattr(module, "gradient_checkpointing", False) for module in backbone.model.modules())
    return backbone


def count_calls(monkeypatch) -> list:
    """Return a list that grows with every attention call from now on."""
    calls, plain = [], AttentionCall.run
    monkeypatch.setattr(AttentionCall, "run", lambda call: (calls.append(call.site), plain(call))[1])
    return calls


@pytest.mark.parametrize("spec", [PREFIX, MLP, PROMPT], ids=["prefix", "mlp", "prompt"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_d3_checkpointing_trains_the_same_gradient_in_any_thread(backbone_of, measure, monkeypatch, family, spec):
    backbone = backbone_of(family)
    prompt = made(backbone, spec)
    expected = gradients(backbone, prompt, ROWS)
    assert all((gradient != 0).any() for gradient in expected)
    saving, recomputed = checkpointing(family), count_calls(monkeypatch)
    here = gradients(saving, prompt, ROWS)
    prompt.zero_grad()
    loss = target_loss(saving, ROWS, [prompt] * len(ROWS))
    before = len(recomputed)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # as autograd's own threads do on a GPU
        pool.submit((loss.sum / loss.num_tokens).backward).result()
    assert len(recomputed) > before, "nothing was recomputed, so the comparison shows nothing"
    there = [parameter.grad for parameter in prompt.parameters()]
    scale = max(gradient.abs().max().item() for gradient in expected)
    measure("D3 checkpointing", family, gap(here, expected) / scale)
    measure("D3 checkpointing, thread", family, gap(there, expected) / scale)


def test_d3_note_on_peft(backbone_of):
    theirs = fresh_peft(backbone_of("llama"), "prefix").train()
    checkpoint(theirs.base_model)
    theirs.enable_input_require_grads()
    ids = torch.tensor([[9, 10, 11]])

    def act():
        theirs(input_ids=ids, labels=ids).loss.backward()
        return [None if p.grad is None else p.grad.abs().max().item() for p in theirs.prompt_encoder.parameters()]

    said = tried(act)
    note(f"D3 PEFT, prefix under gradient checkpointing: largest gradient {said}")
    assert said


@pytest.mark.parametrize("spec", [PREFIX, MLP, PROMPT], ids=["prefix", "mlp", "prompt"])
def test_d4_training_goes_on_after_load_as_if_never_stopped(backbone_of, tmp_path, spec):
    backbone = backbone_of("llama")

    def steps(prompt, count):
        for _ in range(count):
            for parameter, gradient in zip(prompt.parameters(), gradients(backbone, prompt, ROWS), strict=True):
                parameter.data -= 0.1 * gradient
        return prompt

    straight = steps(made(backbone, spec), 6)
    save_prompt(steps(made(backbone, spec), 3), tmp_path, backbone)
    resumed = load_prompt(tmp_path, backbone, unfolded=True)
    assert all(parameter.requires_grad for parameter in resumed.parameters())
    steps(resumed, 3)
    pairs = zip(straight.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(straight.parameters()), next(made(backbone, spec).parameters())), "nothing was learned"
    note("D4 PEFT: " + tried(lambda: peft.PeftModel.from_pretrained(plain_copy(backbone), tmp_path, is_trainable=True)))


def even_layers(family):
    """Return an encoder-decoder with 4 layers, the even number at which half of PEFT's prefix dies."""
    torch.manual_seed(0)
    if family == "t5":
        config = tf.T5Config(
            d_model=64, d_kv=16, d_ff=96, num_layers=4, num_heads=4, vocab_size=VOCAB, dropout_rate=0.0,
            decoder_start_token_id=0,
        )  # fmt: skip
        model = tf.T5ForConditionalGeneration(config)
    else:
        config = tf.BartConfig(
            d_model=64, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=96, decoder_ffn_dim=96, vocab_size=VOCAB, max_position_embeddings=512, dropout=0.0,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, decoder_start_token_id=2, forced_eos_token_id=None,
        )  # fmt: skip
        model = tf.BartForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(3.0)
    return wrap_backbone(model, tokenizer(), source=f"tests/even-{family}")


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_d5_every_number_of_an_encoder_decoder_prefix_is_alive(family):
    backbone = even_layers(family)
    prompt = made(backbone, PREFIX)
    assert set(prompt.tables) == {"encoder", "decoder", "cross"} and len(prompt.sites) == 12
    grads = dict(zip(prompt.tables, gradients(backbone, prompt, ROWS), strict=True))
    for stack, gradient in grads.items():
        assert gradient.shape == (5, 4 * 2 * 64)
        assert (gradient != 0).all(), f"{(gradient == 0).float().mean():.0%} of the {stack} prefix is dead"
        one, two = gradient.chunk(2, 1)  # layers 0, 1 and layers 2, 3
        assert (one - two).abs().max() > 1e-3 * gradient.abs().max(), "layers i and i + L/2 share one prefix"

    theirs = peft.get_peft_model(plain_copy(backbone), peft.PrefixTuningConfig("SEQ_2_SEQ_LM", num_virtual_tokens=5))

    def act():
        theirs(input_ids=torch.tensor([[9, 10]]), labels=torch.tensor([[20, 21]])).loss.backward()
        (gradient,) = (p.grad for p in theirs.prompt_encoder.parameters())
        return f"{(gradient == 0).float().mean():.0%} of the prefix has no gradient"

    note(f"D5 PEFT, {family}: {tried(act)}")


def test_d6_a_prefix_fits_where_heads_times_width_is_not_the_model_width(backbone_of):
    backbone = backbone_of("t5")
    shape = backbone.geometry.sites["decoder", 0]
    assert shape.kv_heads * shape.key_width != backbone.geometry.embed_width
    prompt = made(backbone, PREFIX)
    assert all((gradient != 0).any() for gradient in gradients(backbone, prompt, ROWS))
    plain, ours = (logits(backbone, TEXTS, p, targets=TEXTS) for p in (None, prompt))
    assert gap(plain, ours) > 1e-2
    config = peft.PrefixTuningConfig("SEQ_2_SEQ_LM", num_virtual_tokens=5)
    theirs = peft.get_peft_model(plain_copy(backbone), config)
    ids = torch.tensor([[9, 10]])
    note(f"D6 PEFT, T5 with d_kv * heads != d_model: {tried(lambda: theirs(input_ids=ids, labels=ids).loss.item())}")


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_d7_every_row_of_an_encoder_prompt_is_trained(backbone_of, family):
    backbone = backbone_of(family)
    prompt = made(backbone, PROMPT)
    (gradient,) = gradients(backbone, prompt, ROWS)
    assert prompt.num_parameters == 4 * backbone.geometry.embed_width == gradient.numel()
    assert (gradient != 0).all()
    theirs = fresh_peft(backbone, "prompt", length=4, task="SEQ_2_SEQ_LM")
    theirs(input_ids=torch.tensor([[9, 10]]), labels=torch.tensor([[20, 21]])).loss.backward()
    (rows,) = (p.grad.abs().amax(1) for p in theirs.prompt_encoder.parameters())
    note(f"D7 PEFT, {family}: {int((rows > 0).sum())} of {len(rows)} rows have a gradient")
