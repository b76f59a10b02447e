"""`foreword export vllm`: what leads its text becomes a prefix file, what does not is refused with a sentence."""

import json

import pytest
import torch
from backbones import make

from foreword.artifact import save_prompt
from foreword.cli import main
from foreword.engines.export import INDEX, export_vllm, placeholder_of
from foreword.engines.prefix_files import read_layers
from foreword.errors import ArtifactError, PromptError
from foreword.prompts.soft_prompt import compile_prompt, make_prompt
from foreword.prompts.spec import PromptSpec

LEADING = {
    "plain": {}, "mlp": {"reparam": "mlp", "reparam_width": 8}, "soft": {"kind": "prompt"},
    "bos": {"kind": "prompt", "placement": "after_bos"},
}
OTHERS = {
    "infix": ({"kind": "infix"}, "inside the text"),
    "suffix": ({"kind": "prompt", "placement": "suffix"}, "inside the text"),
    "some-layers": ({"layers": (0, 2)}, "layer 1"),
}


def drawn(backbone, seed=0, **spec):
    prompt = make_prompt(PromptSpec(length=5, **spec), backbone)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for table in prompt.tables.values():
            table.draw(draw)
    return prompt.eval()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    made = make("llama")
    folder = tmp_path_factory.mktemp("backbone")
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    from foreword.backbone import load_backbone

    return load_backbone(folder)


@pytest.fixture
def store(backbone, tmp_path):
    for seed, (name, spec) in enumerate(LEADING.items()):
        save_prompt(drawn(backbone, seed, **spec), tmp_path / "store" / name, backbone)
    return tmp_path / "store"


def test_a_store_becomes_files_and_an_index(backbone, store, tmp_path):
    save_prompt(drawn(backbone, 9), store / "tenants" / "acme" / "own", backbone)
    made = export_vllm(store, backbone, tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert set(made.files) == set(index["prefixes"]) == {*LEADING, "acme/own"} and not made.refused
    for name, record in index["prefixes"].items():
        assert record["digest"] == made.files[name].digest and (tmp_path / "out" / record["file"]).is_file()
        assert record["length"] == (6 if name == "bos" else 5) and record["includes_bos"] == (name == "bos")
        assert record["kv_heads"] == [2, 2, 2] and record["placeholder"] == placeholder_of(backbone)


@pytest.mark.parametrize("kind", LEADING)
def test_the_file_holds_the_compiled_prompt(backbone, store, tmp_path, kind):
    (file,) = export_vllm(store / kind, backbone, tmp_path / "out").files.values()
    prefix = compile_prompt(drawn(backbone, list(LEADING).index(kind), **LEADING[kind]), backbone)
    for pair, site in zip(read_layers(tmp_path / "out", file.digest), backbone.geometry.sites, strict=True):
        for mine, theirs in zip(pair, prefix.states[site], strict=True):
            assert torch.equal(mine.transpose(0, 1), theirs)


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_whole_prefix_is_refused(backbone, store, tmp_path, kind):
    spec, why = OTHERS[kind]
    save_prompt(drawn(backbone, **spec), store / kind, backbone)
    with pytest.raises(PromptError, match=why):
        export_vllm(store / kind, backbone, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    made = export_vllm(store, backbone, tmp_path / "out")
    assert set(made.files) == set(LEADING) and why in made.refused[kind]


def test_always_visible_is_refused_on_a_sliding_window(tmp_path):
    mistral = make("mistral")
    for window, fits in (("model", True), ("always", False)):
        save_prompt(drawn(mistral, window=window), tmp_path / window, mistral)
        if fits:
            assert export_vllm(tmp_path / window, mistral, tmp_path / "out").files
        else:
            with pytest.raises(PromptError, match="sliding window"):
                export_vllm(tmp_path / window, mistral, tmp_path / "out")


def test_an_encoder_decoder_is_refused(tmp_path):
    t5 = make("t5")
    save_prompt(drawn(t5), tmp_path / "p", t5)
    with pytest.raises(PromptError, match="encoder-decoder"):
        export_vllm(tmp_path / "p", t5, tmp_path / "out")


def test_a_second_export_keeps_the_first_and_its_backbone(backbone, store, tmp_path):
    first = export_vllm(store / "plain", backbone, tmp_path / "out").files["plain"]
    save_prompt(drawn(backbone, 77), store / "plain", backbone)
    second = export_vllm(store, backbone, tmp_path / "out").files["plain"]
    assert first.digest != second.digest and (tmp_path / "out" / first.name).is_file()
    assert json.loads((tmp_path / "out" / INDEX).read_text())["prefixes"]["plain"]["digest"] == second.digest
    other = make("gpt2")
    save_prompt(drawn(other), tmp_path / "other", other)
    with pytest.raises(ArtifactError, match="give a new directory"):
        export_vllm(tmp_path / "other", other, tmp_path / "out")


def test_a_damaged_foreword_does_not_stop_the_others(backbone, store, tmp_path):
    path = store / "plain" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    made = export_vllm(store, backbone, tmp_path / "out")
    assert set(made.files) == {"mlp", "soft", "bos"} and "plain" in made.refused


def test_the_placeholder_is_no_word(backbone):
    assert placeholder_of(backbone) == backbone.tokenizer.pad_token_id
    model = make("llama")
    model.model.resize_token_embeddings(128)
    assert placeholder_of(model) == 127


def run(*words):
    return main([str(word) for word in words])


def test_the_command_writes_and_tells(backbone, store, tmp_path, capsys):
    assert run("export", "vllm", store, "--backbone", backbone.source, "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert all(f"{name}: " in told for name in LEADING) and str(tmp_path / "out" / INDEX) in told
    save_prompt(drawn(backbone, kind="infix"), store / "infix", backbone)
    assert run("export", "vllm", store, "--backbone", backbone.source, "--out", tmp_path / "out") == 1
    assert "infix is not exported" in capsys.readouterr().err


def test_bad_input_is_one_line_and_exit_code_2(backbone, store, tmp_path, capsys):
    other = make("gpt2")
    save_prompt(drawn(other), tmp_path / "other", other)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    good = ["--backbone", backbone.source, "--out", tmp_path / "out"]
    for words, why in (
        (["vllm", tmp_path / "other", *good], "another backbone|does not fit"),
        (["vllm", tmp_path / "empty", *good], "holds no foreword"),
        (["vllm", tmp_path / "nowhere", *good], "is not a directory"),
        (["vllm", tmp_path / "file", *good], "is a file"),
        (["vlm", store, *good], "did you mean 'vllm'"),
        (["vllm", store, "--backbone", backbone.source, "--out", tmp_path / "file" / "x"], "cannot be written"),
        (["vllm", store, "--backbone", tmp_path / "nowhere", "--out", tmp_path / "out"], "not a directory"),
    ):
        assert run("export", *words) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and any(part in told for part in why.split("|")), told
