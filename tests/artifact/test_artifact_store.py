"""Save and load: no bit changes, the manifest says what there is, and a write is all or nothing."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from backbones import make
from safetensors import safe_open

from foreword.artifact import content_digest, content_name, convert, directory, load_prompt, save_prompt
from foreword.backbone import wrap_backbone
from foreword.errors import ArtifactError, PromptError
from foreword.prompts.init import initialise
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.prompts.spec import InitSpec, PromptSpec

SPECS = {
    "prefix": PromptSpec(length=3, init=InitSpec(name="normal", std=0.5)),
    "mlp": PromptSpec(length=4, reparam="mlp", reparam_width=12, dropout=0.25),
    "layers": PromptSpec(length=2, layers=(0, 2)),
    "window": PromptSpec(length=2, window="always"),
    "prompt": PromptSpec(kind="prompt", length=5, init=InitSpec(name="labels", labels=("yes", "no"))),
    "prompt-mlp": PromptSpec(kind="prompt", length=5, reparam="mlp", reparam_width=12),
    "after-bos": PromptSpec(kind="prompt", length=2, placement="after_bos"),
    "suffix": PromptSpec(kind="prompt", length=2, placement="suffix"),
    "infix": PromptSpec(kind="infix", length=3),
    "infix-mlp": PromptSpec(kind="infix", length=3, reparam="mlp", reparam_width=12),
}


def made(backbone, spec, seed=0) -> SoftPrompt:
    prompt = make_prompt(spec, backbone)
    initialise(prompt, backbone, torch.Generator().manual_seed(seed), init=InitSpec(name="normal"))
    return prompt


def same(ours: SoftPrompt, theirs: SoftPrompt) -> bool:
    mine, others = ours.state_dict(), theirs.state_dict()
    return list(mine) == list(others) and all(torch.equal(mine[name], others[name]) for name in mine)


CASES = [(family, kind) for family in ("gpt2", "mistral") for kind in SPECS]
CASES += [(family, kind) for family in ("t5", "bart") for kind in ("prefix", "mlp", "layers", "prompt", "suffix")]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_save_then_load_changes_no_bit(backbone_of, tmp_path, family, kind):
    backbone, spec = backbone_of(family), SPECS[kind]
    prompt = made(backbone, spec)
    prompt.format = "seq2seq" if backbone.is_encoder_decoder else "paper"
    before = {name: tensor.clone() for name, tensor in prompt.state_dict().items()}
    assert save_prompt(prompt, tmp_path / "a", backbone) == tmp_path / "a"
    assert all(torch.equal(before[name], tensor) for name, tensor in prompt.state_dict().items())

    served = load_prompt(tmp_path / "a")
    assert same(served, prompt.fold()) and served.spec == dataclasses.replace(spec, reparam="none")
    assert served.geometry == backbone.geometry and served.sites == prompt.sites
    assert served.format == prompt.format and served.fingerprint == backbone.fingerprint
    assert not served.training

    going_on = load_prompt(tmp_path / "a", backbone, unfolded=True)
    assert same(going_on, prompt) and going_on.spec == spec and going_on.training
    assert (tmp_path / "a" / "training.safetensors").exists() == (spec.reparam == "mlp")
    assert all(parameter.requires_grad for parameter in going_on.parameters())
    assert content_digest(prompt) == content_digest(served) == content_digest(going_on) == served.meta["digest"]


def test_the_same_prompt_gives_the_same_bytes(backbone_of, tmp_path):
    backbone = backbone_of("gpt2")
    for name in ("a", "b"):
        save_prompt(made(backbone, SPECS["mlp"]), tmp_path / name, backbone, scores={"bleu": 0.5})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_saving_what_was_loaded_keeps_everything(backbone_of, tmp_path):
    backbone = backbone_of("llama")
    recipe = {"task": "e2e", "prompt": {"length": 4}, "path": Path("x")}
    save_prompt(
        made(backbone, SPECS["mlp"]), tmp_path / "a", backbone, recipe=recipe, scores={"bleu": 45.25}, data_digest="d1"
    )
    again = load_prompt(tmp_path / "a", unfolded=True)
    save_prompt(again, tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    manifest = json.loads((tmp_path / "b" / "foreword.json").read_text())
    assert manifest["recipe"] == {"task": "e2e", "prompt": {"length": 4}, "path": "x"}
    assert manifest["scores"] == {"bleu": 45.25} and manifest["data_digest"] == "d1"
    assert manifest["backbone"] == {"source": "tests/llama", "fingerprint": backbone.fingerprint, "num_layers": 3}
    assert manifest["libraries"]["torch"] == torch.__version__
    assert again.meta["scores"] == {"bleu": 45.25} and again.meta["source"] == "tests/llama"


def test_scores_of_any_number_type(backbone_of, tmp_path):
    scores = {"tensor": torch.tensor(2.5), "nan": float("nan"), "nested": {"low": (1, float("inf"))}, "none": None}
    recipe = {"rates": torch.tensor([0.5, 0.25]), "device": torch.device("cpu")}
    backbone = backbone_of("gpt2")
    save_prompt(made(backbone, SPECS["prefix"]), tmp_path, backbone, scores=scores, recipe=recipe)
    meta = load_prompt(tmp_path).meta
    assert meta["scores"] == {"tensor": 2.5, "nan": None, "nested": {"low": [1, None]}, "none": None}
    assert meta["recipe"] == {"rates": [0.5, 0.25], "device": "cpu"}


def test_the_card_tells_what_is_needed(backbone_of, tmp_path):
    backbone = backbone_of("gpt2")
    save_prompt(made(backbone, SPECS["prefix"]), tmp_path, backbone, recipe={"lr": 0.5}, scores={"bleu": 45.123456})
    card = (tmp_path / "README.md").read_text()
    for wanted in ("# Prefix of 3 virtual tokens", "tests/gpt2", backbone.fingerprint["weights"], "| bleu | 45.12 |",
                   "lr: 0.5", "fw.load_prompt", "PeftModel.from_pretrained"):  # fmt: skip
        assert wanted in card
    assert load_prompt(tmp_path).meta["digest"] in card


def test_names_and_digests_follow_the_content(backbone_of, tmp_path):
    backbone = backbone_of("llama")
    prompt, other = made(backbone, SPECS["prefix"]), made(backbone, SPECS["prefix"], seed=1)
    assert content_name(prompt).startswith("prefix-3-") and content_digest(prompt)[:12] in content_name(prompt)
    digests = {content_digest(p) for p in (prompt, other, made(backbone, PromptSpec(length=3, window="always")))}
    assert len(digests) == 3
    formatted = made(backbone, SPECS["prefix"])
    formatted.format = "paper"
    assert content_digest(formatted) not in digests
    shuffled = made(backbone, dataclasses.replace(SPECS["prefix"], dropout=0.5, init=InitSpec(name="uniform")))
    assert content_digest(shuffled) == content_digest(prompt)  # how it was drawn or trained changes nothing served


def test_another_backbone_is_refused(backbone_of, tmp_path):
    backbone = backbone_of("llama")
    save_prompt(made(backbone, SPECS["prefix"]), tmp_path, backbone)
    twin = make("llama", seed=1)  # same shapes, other weights
    with pytest.raises(PromptError, match=r"differs in weights"):
        load_prompt(tmp_path, twin)
    with pytest.raises(PromptError, match=r"differs in weights"):
        load_prompt(tmp_path).realise(twin)
    renamed = wrap_backbone(make("llama").model, make("llama").tokenizer)
    renamed.tokenizer.add_tokens(["<extra>"])
    with pytest.raises(PromptError, match=r"differs in tokenizer"):
        load_prompt(tmp_path, renamed)
    with pytest.raises(PromptError, match="does not fit"):
        load_prompt(tmp_path, backbone_of("t5"))
    with pytest.raises(PromptError, match="another backbone"):
        save_prompt(load_prompt(tmp_path), tmp_path / "b", twin)


def test_nothing_global_is_drawn(backbone_of, tmp_path):
    prompt = made(backbone_of("gpt2"), SPECS["mlp"])
    state = torch.random.get_rng_state()
    save_prompt(prompt, tmp_path, backbone_of("gpt2"))
    load_prompt(tmp_path, unfolded=True)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_tensors_are_float32_and_named_for_peft_only_where_right(backbone_of, tmp_path):
    for kind, names in (("mlp", {"prompt_embeddings"}), ("infix", {"foreword.embedding", "foreword.offset"})):
        save_prompt(made(backbone_of("gpt2"), SPECS[kind]), tmp_path / kind, backbone_of("gpt2"))
        with safe_open(tmp_path / kind / "adapter_model.safetensors", "pt") as file:
            assert set(file.keys()) == names and file.metadata() == {"format": "pt"}
            assert all(file.get_tensor(name).dtype == torch.float32 for name in names)


def test_replacing_leaves_only_the_new(backbone_of, tmp_path):
    backbone = backbone_of("gpt2")
    save_prompt(made(backbone, SPECS["mlp"]), tmp_path / "a", backbone)
    prompt = made(backbone, SPECS["infix"])
    save_prompt(prompt, tmp_path / "a", backbone)
    assert same(load_prompt(tmp_path / "a"), prompt)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "README.md", "adapter_model.safetensors", "foreword.json"
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("fault", ["_write_file", "_flush", "_take_place"])
def test_a_failed_write_leaves_the_old_one(backbone_of, tmp_path, monkeypatch, fault, exchange):
    backbone = backbone_of("gpt2")
    old, new = made(backbone, SPECS["prefix"]), made(backbone, SPECS["prefix"], seed=1)
    save_prompt(old, tmp_path / "a", backbone)
    with monkeypatch.context() as patch:
        if not exchange:
            patch.setattr(directory, "_exchange", lambda one, other: False)
        patch.setattr(directory, fault, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ArtifactError, match="cannot be written: No space left on device"):
            save_prompt(new, tmp_path / "a", backbone)
        assert same(load_prompt(tmp_path / "a"), old) and [p.name for p in tmp_path.iterdir()] == ["a"]
    with monkeypatch.context() as patch:
        if not exchange:
            patch.setattr(directory, "_exchange", lambda one, other: False)
        save_prompt(new, tmp_path / "a", backbone)
    assert same(load_prompt(tmp_path / "a"), new) and [p.name for p in tmp_path.iterdir()] == ["a"]


WRITER = """
import importlib.util, sys
from pathlib import Path
sys.path.insert(0, {root!r})
spec = importlib.util.spec_from_file_location("directory", {module!r})  # alone, so that it starts at once
directory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(directory)
number = 0
print("ready", flush=True)
while True:
    number += 1
    content = str(number).encode() * 200_000
    directory.write_directory(Path({target!r}), {{"foreword.json": content, "adapter_model.safetensors": content}})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_at_any_moment_leaves_a_whole_directory(tmp_path):
    target = tmp_path / "a"
    module = Path(directory.__file__)
    script = WRITER.format(root=str(module.parents[2]), module=str(module), target=str(target))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        seen, until = 0, time.monotonic() + 1.5
        while time.monotonic() < until:  # a reader that holds the directory open sees one artefact, whole
            if not target.exists():
                continue
            handle = os.open(target, os.O_RDONLY)
            try:
                parts = [_read(name, handle) for name in ("foreword.json", "adapter_model.safetensors")]
            except FileNotFoundError:
                continue  # this one was replaced and removed meanwhile
            finally:
                os.close(handle)
            assert parts[0] == parts[1] and len(parts[0]) % 200_000 == 0
            seen += 1
        assert seen > 5
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert (target / "foreword.json").read_bytes() == (target / "adapter_model.safetensors").read_bytes()
    for left in tmp_path.glob(".a.*.writing"):
        os.utime(left, (0, 0))
    directory.write_directory(target, {"README.md": b"x"})
    assert [p.name for p in tmp_path.iterdir()] == ["a"], "what the killed writer left is swept"


def _read(name: str, handle: int) -> bytes:
    file = os.open(name, os.O_RDONLY, dir_fd=handle)
    with os.fdopen(file, "rb") as stream:
        return stream.read()


def test_other_files_are_never_replaced(backbone_of, tmp_path):
    backbone = backbone_of("gpt2")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds 'thesis\.tex', which is no part of a prompt"):
        save_prompt(made(backbone, SPECS["prefix"]), tmp_path, backbone)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(ArtifactError, match="is a file"):
        save_prompt(made(backbone, SPECS["prefix"]), tmp_path / "thesis.tex", backbone)


def test_convert_names_the_forms(backbone_of, tmp_path):
    save_prompt(made(backbone_of("gpt2"), SPECS["mlp"]), tmp_path / "a", backbone_of("gpt2"))
    with pytest.raises(ArtifactError, match="did you mean 'peft'"):
        convert(tmp_path / "a", tmp_path / "b", to="pefd")
    convert(tmp_path / "a", tmp_path / "b", to="foreword")
    assert same(load_prompt(tmp_path / "b", unfolded=True), load_prompt(tmp_path / "a", unfolded=True))
