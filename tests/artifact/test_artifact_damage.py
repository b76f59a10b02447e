"""Damaged, foreign and malicious files: one line that names the file and the fault, before anything big is read."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from foreword.artifact import load_prompt, save_prompt
from foreword.errors import ArtifactError
from foreword.prompts.init import initialise
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import InitSpec, PromptSpec

WEIGHTS, TRAINING, MANIFEST = "adapter_model.safetensors", "training.safetensors", "foreword.json"


@pytest.fixture
def saved(backbone_of, tmp_path):
    backbone = backbone_of("llama")
    prompt = make_prompt(PromptSpec(length=4, reparam="mlp", reparam_width=12), backbone)
    initialise(prompt, backbone, torch.Generator().manual_seed(0), init=InitSpec(name="normal"))
    return save_prompt(prompt, tmp_path / "kept", backbone)


def refused(source, message: str, **options) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        load_prompt(source, **options)
    assert "\n" not in str(caught.value)


def edit(directory, path: str, value: object) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    node = manifest
    *parents, leaf = path.split(".")
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node[parent]
    node[leaf] = value
    (directory / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "other", "format = 'other' is not 'foreword.prompt'"),
        ("version", 2, "format version 2 is unknown, this Foreword reads 1; upgrade"),
        ("version", "1", "format version '1' is unknown"),
        ("version", None, "format version None"),
        ("spec.kind", "prefixx", "spec.kind = 'prefixx' is not a valid choice; did you mean 'prefix'"),
        ("spec.length", 0, "prompt.length = 0"),
        ("spec.length", "4", "spec.length = '4' must be int"),
        ("spec.length", 5, r"is \[4, 192\], must be \[5, 192\]"),
        ("spec.length", 10**12, "is larger than any prompt's"),
        ("spec.length", 10**400, "is larger than any prompt's"),
        ("spec.reparam_width", 10**15, "is larger than any prompt's"),
        ("spec.colour", "red", "unknown field 'spec.colour'"),
        ("spec.layers", [0, 7], r"prompt.layers names \[7\]"),
        ("spec.stacks", ["encoder"], "prompt.stacks names 'encoder'"),
        ("spec.window", "always", "content digest differs"),
        ("spec.kind", "prompt", r"must be \[4, 64\]"),
        ("text_format", "paper", "content digest differs"),
        ("geometry.sites", [], "without any attention site"),
        ("geometry.embed_width", -1, "geometry.embed_width = -1"),
        ("geometry.sites.0.kv_heads", 0, "geometry.sites has a bad entry for decoder layer 0"),
        ("geometry.sites.0.layer", 1, "geometry.sites has a bad entry for decoder layer 1"),
        ("geometry.sites.0.kv_heads", 4, r"must be \[4, 256\]"),
        ("geometry.sites.0.stack", "decode", "did you mean 'decoder'"),
        ("backbone.fingerprint", 3, "backbone.fingerprint = 3"),
        ("digest", "0" * 64, "content digest differs"),
        ("digest", None, "digest = None must be str"),
    ],
)
def test_a_wrong_manifest(saved, path, value, message):
    edit(saved, path, value)
    refused(saved, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1]", "holds list, not a mapping"),
        ("[" * 100_000, "not valid JSON"),
        ("\ud800", "not valid JSON"),
        ("{}", "format = None"),
    ],
)
def test_a_manifest_that_is_none(saved, text, message):
    (saved / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(saved, message)


def test_a_manifest_without_end(saved):
    with (saved / MANIFEST).open("wb") as stream:
        stream.truncate(1 << 40)  # a sparse file of a terabyte
    refused(saved, "far too many")


@pytest.mark.parametrize("keep", [0, 7, 8, 60, -1, -400])
@pytest.mark.parametrize("name", [WEIGHTS, TRAINING])
def test_truncated_tensors(saved, name, keep):
    path = saved / name
    path.write_bytes(path.read_bytes()[:keep])
    refused(saved, f"{name} cannot be read", unfolded=True)


def test_a_header_that_promises_too_much(saved):
    header = json.dumps({"prompt_embeddings": {"dtype": "F32", "shape": [4, 1 << 40], "data_offsets": [0, 1 << 44]}})
    (saved / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header.encode())
    refused(saved, "cannot be read")
    (saved / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    refused(saved, "cannot be read")


@pytest.mark.parametrize("name", [WEIGHTS, TRAINING])
def test_missing_files(saved, name):
    (saved / name).unlink()
    refused(saved, f"{name} cannot be read|lacks {name}", unfolded=True)


def change(directory, name: str, edit_tensors) -> None:
    tensors = load_file(directory / name)
    edit_tensors(tensors)
    save_file(tensors, directory / name, metadata={"format": "pt"})


@pytest.mark.parametrize(("name", "tensor"), [(WEIGHTS, "prompt_embeddings"), (TRAINING, "tables.decoder.inner.bias")])
def test_changed_tensors(saved, name, tensor):
    whole = load_file(saved / name)[tensor]
    for value in (float("nan"), float("inf")):
        change(saved, name, lambda tensors, value=value: tensors[tensor].view(-1)[3:4].fill_(value))
        refused(saved, f"tensor '{tensor}' has NaN or infinite values", unfolded=True)
    change(saved, name, lambda tensors: tensors.update({tensor: torch.nextafter(whole, whole + 1)}))
    refused(saved, "digest differs", unfolded=True)
    change(saved, name, lambda tensors: tensors.update({tensor: whole[:-1].clone()}))
    refused(saved, f"tensor '{tensor}' is .* must be", unfolded=True)
    change(saved, name, lambda tensors: tensors.update({tensor: whole.long()}))
    refused(saved, r"is torch.int64, not floating-point", unfolded=True)
    change(saved, name, lambda tensors: tensors.pop(tensor) is None)
    refused(saved, "lacks tensor|cannot be read", unfolded=True)


@pytest.mark.parametrize("at", range(0, 1000, 83))
def test_any_flipped_byte_of_the_data_is_noticed(saved, at):
    path = saved / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1 - at] ^= 0x10
    path.write_bytes(content)
    refused(saved, "digest differs|NaN or infinite")


def test_nan_is_never_written(backbone_of, tmp_path):
    backbone = backbone_of("llama")
    prompt = make_prompt(PromptSpec(kind="infix", length=2), backbone)
    with torch.no_grad():
        prompt.tables["offset"].weight[1, 5] = float("nan")
    with pytest.raises(ArtifactError, match=r"tensor 'foreword\.offset' has NaN"):
        save_prompt(prompt, tmp_path / "a", backbone)
    assert not (tmp_path / "a").exists()


def test_sources_that_are_no_prompt(saved, tmp_path, monkeypatch):
    refused(tmp_path / "kepd", "is not a directory; did you mean 'kept'")
    refused(tmp_path / "no" / "such" / "place", "is not a directory")
    monkeypatch.chdir(tmp_path.parent)
    refused(f"{tmp_path.name}/kepd", "is not a directory; did you mean 'kept'")  # not looked for on the hub
    refused(saved / WEIGHTS, "is a file; give the directory that holds it")
    refused(tmp_path, r"has neither foreword\.json nor adapter_config\.json; did you mean .*kept")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"has neither foreword\.json nor adapter_config\.json; give the directory")


def test_no_pickle_is_read(saved):
    torch.save(load_file(saved / WEIGHTS), saved / "adapter_model.bin")
    (saved / WEIGHTS).unlink()
    refused(saved, r"adapter_model\.bin is a pickle")


def test_peft_rewriting_the_tensors_is_noticed(saved):
    change(saved, WEIGHTS, lambda tensors: tensors["prompt_embeddings"].add_(1))
    refused(saved, r"remove foreword\.json if another program rewrote the tensors on purpose")
    (saved / MANIFEST).unlink()
    assert load_prompt(saved).fingerprint is None  # now it is PEFT's
