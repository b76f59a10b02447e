"""PEFT's files and ours go both ways on the eight decoder families: equal logits, losses and greedy text."""

import json
from pathlib import Path

import peft
import pytest
import torch
from backbones import DECODERS
from peers import (
    HARMLESS,
    TEXTS,
    fresh_peft,
    load_peft,
    made,
    peft_config,
    peft_generate,
    peft_logits,
    peft_loss,
    plain_copy,
    saved_peft,
)
from safetensors.torch import load_file, save_file

from foreword.artifact import content_digest, convert, load_prompt, save_prompt
from foreword.errors import ArtifactError, PromptError
from foreword.generate import generate_ids, logits
from foreword.generate.offline import make_rows
from foreword.prompts.batch import Row
from foreword.prompts.spec import PromptSpec
from foreword.train.loss import target_loss

pytestmark = [pytest.mark.filterwarnings(message) for message in HARMLESS]
NEW_LEN = 8


def check_equal(backbone, prompt, theirs, measure, law, family):
    """Hold our prompt and a PEFT model to equal logits, losses and greedy text, row by row without padding."""
    rows, _ = make_rows(backbone, TEXTS, prompt)
    plain = logits(backbone, TEXTS)
    for row, ours, without in zip(rows, logits(backbone, TEXTS, prompt), plain, strict=True):
        measure(law, family, (ours - peft_logits(theirs, row.source)).abs().max().item(), 1e-5)
        assert (ours - without).abs().max() > 1e-2, "the prompt does nothing, so the comparison shows nothing"
    long = [row for row in rows if len(row.source) > 1]
    split = [Row(row.source[:1], (row.source[1:],)) for row in long]
    for row, whole in zip(split, long, strict=True):
        loss = target_loss(backbone, [row], [prompt])
        measure(f"{law}, loss", family, abs(loss.sum.item() / loss.num_tokens - peft_loss(theirs, whole.source)), 1e-5)
    mixed = generate_ids(backbone, rows, [prompt] * len(rows), max_new_tokens=NEW_LEN)  # one padded batch
    for row, ours in zip(rows, mixed, strict=True):
        expected = peft_generate(theirs, row.source, NEW_LEN)
        assert ours == expected[: len(ours)] and (len(ours) == NEW_LEN or ours[-1] == backbone.tokenizer.eos_token_id)


@pytest.mark.parametrize("kind", ["prefix", "projected", "prompt", "p_tuning", "cartridge"])
@pytest.mark.parametrize("family", DECODERS)
def test_peft_files_load_as_ours(backbone_of, measure, tmp_path, family, kind):
    backbone = backbone_of(family)
    theirs = saved_peft(backbone, kind, tmp_path / "peft")
    prompt = load_prompt(tmp_path / "peft")
    assert prompt.fingerprint is None
    stored = load_file(tmp_path / "peft" / "adapter_model.safetensors")["prompt_embeddings"]
    assert torch.equal(prompt.table(next(iter(prompt.tables))), stored)
    check_equal(backbone, prompt, theirs, measure, f"PEFT -> ours, {kind}", family)


@pytest.mark.parametrize("kind", ["prefix", "mlp", "prompt"])
@pytest.mark.parametrize("family", DECODERS)
def test_ours_load_in_peft(backbone_of, measure, tmp_path, family, kind):
    backbone = backbone_of(family)
    specs = {
        "prefix": PromptSpec(length=5),
        "mlp": PromptSpec(length=5, reparam="mlp", reparam_width=24),
        "prompt": PromptSpec(kind="prompt", length=4),
    }
    prompt = made(backbone, specs[kind])
    save_prompt(prompt, tmp_path / "ours", backbone)
    theirs = load_peft(backbone, tmp_path / "ours")
    check_equal(backbone, load_prompt(tmp_path / "ours"), theirs, measure, f"ours -> PEFT, {kind}", family)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_round_trip_changes_no_bit(backbone_of, tmp_path, family):
    backbone = backbone_of(family)
    prompt = made(backbone, PromptSpec(length=3))
    save_prompt(prompt, tmp_path / "a", backbone)
    convert(tmp_path / "a", tmp_path / "b", to="peft")
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    load_peft(backbone, tmp_path / "b").save_pretrained(tmp_path / "c", save_embedding_layers=False)
    convert(tmp_path / "c", tmp_path / "d", to="foreword", backbone=backbone)
    back = load_prompt(tmp_path / "d", backbone)
    assert torch.equal(back.table("decoder"), prompt.table("decoder"))
    assert back.fingerprint == backbone.fingerprint
    assert content_digest(back) == content_digest(prompt)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_bfloat16_files_load_with_equal_values(backbone_of, tmp_path, kind):
    backbone = backbone_of("llama")
    saved_peft(backbone, kind, tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    halved = load_file(path)["prompt_embeddings"].bfloat16()
    save_file({"prompt_embeddings": halved}, path, metadata={"format": "pt"})
    table = next(iter((prompt := load_prompt(tmp_path)).tables))
    assert prompt.table(table).dtype == torch.float32 and torch.equal(prompt.table(table), halved.float())


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_smallest_config_that_peft_takes(backbone_of, tmp_path, kind):
    backbone = backbone_of("qwen3")
    theirs = saved_peft(backbone, kind, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    least = {key: config[key] for key in ("peft_type", "task_type", "num_virtual_tokens")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(least))
    if kind == "prefix":
        with pytest.raises(ArtifactError, match="lacks num_layers, num_attention_heads, token_dim; pass the backbone"):
            load_prompt(tmp_path)
    prompt = load_prompt(tmp_path, backbone)
    ids = make_rows(backbone, TEXTS[:1], prompt)[0][0].source
    assert (logits(backbone, TEXTS[:1], prompt)[0] - peft_logits(theirs, ids)).abs().max() <= 1e-5


@pytest.mark.parametrize("submodules", [1, 2])
@pytest.mark.parametrize("family", ["t5", "t5_square", "bart"])
def test_encoder_prompts_of_peft(backbone_of, measure, tmp_path, caplog, family, submodules):
    backbone = backbone_of(family)
    theirs = fresh_peft(backbone, "prompt", length=4, task="SEQ_2_SEQ_LM", submodules=submodules)
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    stored = load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
    prompt = load_prompt(tmp_path)
    assert torch.equal(prompt.table("embedding"), stored[:4]) and len(stored) == 4 * submodules
    said = caplog.messages + prompt.meta["notes"]
    assert ["rows 4 to 7 left out" in text for text in said] == [True] * 2 * (submodules - 1)
    check_seq2seq(backbone, prompt, theirs, measure, f"PEFT -> ours, encoder prompt x{submodules}", family)


@pytest.mark.parametrize("family", ["t5", "t5_square", "bart"])
def test_encoder_prompts_of_ours(backbone_of, measure, tmp_path, family):
    backbone = backbone_of(family)
    save_prompt(made(backbone, PromptSpec(kind="prompt", length=4)), tmp_path, backbone)
    theirs = load_peft(backbone, tmp_path)
    check_seq2seq(backbone, load_prompt(tmp_path), theirs, measure, "ours -> PEFT, encoder prompt", family)


@torch.no_grad()
def check_seq2seq(backbone, prompt, theirs, measure, law, family):
    rows, _ = make_rows(backbone, TEXTS, prompt)
    start = backbone.model.config.decoder_start_token_id
    ours = logits(backbone, TEXTS, prompt, targets=TEXTS)
    new = generate_ids(backbone, rows, [prompt] * len(rows), max_new_tokens=NEW_LEN)
    for row, text, mine, made_ids in zip(rows, TEXTS, ours, new, strict=True):
        tokens = torch.tensor([row.source])
        target = backbone.tokenizer(text).input_ids
        arguments = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        out = theirs(**arguments, decoder_input_ids=torch.tensor([[start, *target[:-1]]]))
        scale = max(1.0, out.logits.abs().max().item())
        measure(law, family, (mine - out.logits[0]).abs().max().item() / scale, 1e-5)
        expected = theirs.generate(**arguments, max_new_tokens=NEW_LEN, do_sample=False)[0, 1:].tolist()
        assert made_ids == expected[: len(made_ids)]


@pytest.mark.parametrize(
    ("family", "spec", "reason"),
    [
        ("llama", PromptSpec(kind="infix", length=3), "no infix"),
        ("llama", PromptSpec(kind="prompt", length=3, placement="suffix"), "placement is 'suffix'"),
        ("llama", PromptSpec(kind="prompt", length=3, placement="after_bos"), "placement is 'after_bos'"),
        ("llama", PromptSpec(length=3, layers=(0, 2)), "no choice of layers"),
        ("mistral", PromptSpec(length=3, window="always"), "sliding window"),
        ("t5", PromptSpec(length=3), "another method"),
        ("bart", PromptSpec(length=3, stacks=("decoder",)), "another method"),
    ],
)
def test_peft_refuses_what_it_cannot_serve(backbone_of, tmp_path, family, spec, reason):
    backbone = backbone_of(family)
    prompt = made(backbone, spec)
    save_prompt(prompt, tmp_path / "ours", backbone)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        load_peft(backbone, tmp_path / "ours")
    assert all("prompt_embeddings" not in name for name in load_file(tmp_path / "ours" / "adapter_model.safetensors"))
    with pytest.raises(ArtifactError, match=reason):
        convert(tmp_path / "ours", tmp_path / "theirs", to="peft")
    assert not (tmp_path / "theirs").exists()
    assert reason in (tmp_path / "ours" / "README.md").read_text()
    back = load_prompt(tmp_path / "ours", backbone)
    assert back.spec == prompt.spec and all(torch.equal(back.table(t), prompt.table(t)) for t in prompt.tables)


def test_a_window_that_the_backbone_lacks_does_not_matter(backbone_of, tmp_path):
    backbone = backbone_of("gpt2")
    save_prompt(made(backbone, PromptSpec(length=3, window="always")), tmp_path, backbone)
    assert load_peft(backbone, tmp_path).active_peft_config.num_virtual_tokens == 3


def test_peft_files_on_another_backbone(backbone_of, tmp_path):
    saved_peft(backbone_of("llama"), "prefix", tmp_path)
    prompt = load_prompt(tmp_path)
    for other in ("gpt2", "qwen3", "t5"):
        with pytest.raises(PromptError, match="does not fit"):
            logits(backbone_of(other), ["a"], prompt, targets=["a"])
        with pytest.raises(ArtifactError, match=r"adapter_(model|config)"):
            load_prompt(tmp_path, backbone_of(other))
    assert logits(backbone_of("mistral"), ["a"], prompt)[0].isfinite().all()  # same shape and no fingerprint: no fault


def edit(directory: Path, **changes: object) -> None:
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type = 'LORA' is no soft prompt"),
        ({"peft_type": None}, "peft_type = None"),
        ({"task_type": "SEQ_CLS"}, "task_type = 'SEQ_CLS'"),
        ({"task_type": None, "num_transformer_submodules": None}, "task_type is missing"),
        ({"modules_to_save": ["score"]}, "modules_to_save"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens = 0"),
        ({"num_virtual_tokens": "5"}, "num_virtual_tokens = '5'"),
        ({"num_virtual_tokens": 6}, r"is \[5, 192\], must be \[6, 192\]"),
        ({"num_layers": 4}, r"must be \[5, 256\]"),
        ({"num_attention_heads": 5}, "cannot be"),
        ({"num_layers": 10**9}, "cannot be"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "no prefix of ours equals it"),
    ],
)
def test_wrong_configs_are_refused(backbone_of, tmp_path, changes, message):
    backbone = backbone_of("llama")
    saved_peft(backbone, "prefix", tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_prompt(tmp_path)
    assert "\n" not in str(caught.value)


def test_pickles_are_refused(backbone_of, tmp_path):
    saved_peft(backbone_of("llama"), "prefix", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"lacks adapter_model\.safetensors"):
        load_prompt(tmp_path)
    torch.save(tensors, tmp_path / "adapter_model.bin")
    with pytest.raises(ArtifactError, match=r"adapter_model\.bin is a pickle.*safe_serialization=True"):
        load_prompt(tmp_path)


def test_a_trained_head_is_not_dropped_in_silence(backbone_of, tmp_path):
    saved_peft(backbone_of("llama"), "prompt", tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.score.weight": torch.zeros(2, 64)}, path)
    with pytest.raises(ArtifactError, match=r"also holds 'base_model\.score\.weight'"):
        load_prompt(tmp_path)


def test_named_adapters_lie_one_level_deeper(backbone_of, tmp_path):
    backbone = backbone_of("llama")
    model = peft.get_peft_model(plain_copy(backbone), peft_config("prefix", 2), adapter_name="polite")
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ArtifactError, match=r"did you mean .*polite"):
        load_prompt(tmp_path)
    assert load_prompt(tmp_path / "polite").length == 2
