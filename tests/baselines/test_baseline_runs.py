"""Every baseline through the one job: trained, cut off and resumed, stored, loaded again for evaluation."""

import json
import shutil

import pytest
import torch
from backbones import FAMILIES, make
from safetensors.torch import load_file
from toy import EXAMPLES, metrics, run_config, save_backbone, save_task
from transformers import AutoModelForCausalLM

from foreword.artifact import load_prompt
from foreword.backbone import load_backbone
from foreword.baselines.adapter import Adapter, AdapterSpec
from foreword.baselines.lora import Lora, LoraSpec
from foreword.baselines.methods import apply_baseline
from foreword.baselines.saved import read_baseline
from foreword.data.examples import encode_source, get_format
from foreword.errors import ArtifactError, BackboneError, ConfigError, TrainingError
from foreword.evaluate.job import evaluate
from foreword.evaluate.subject import load_subjects
from foreword.prompts.batch import Row
from foreword.tasks.task import GenerationLimits
from foreword.train.job import load_data, resume, train
from foreword.train.loss import target_loss
from foreword.train.record import read_config, read_latest
from foreword.train.rehearse import rehearse

METHODS = {
    "fine_tune": {"method": "fine_tune"},
    "top_layers": {"method": "top_layers", "top_layers": {"layers": 1}},
    "top_layers_embedding": {"method": "top_layers", "top_layers": {"layers": 2, "embedding": True}},
    "adapter": {"method": "adapter", "adapter": {"bottleneck": 3}, "optim": {"lr": 1e-2}},
    "lora": {"method": "lora", "lora": {"rank": 2, "lora_dropout": 0.2}, "optim": {"lr": 1e-2}},
}
ROWS = [Row(example.source_ids, (example.target_ids,)) for example in EXAMPLES]
LIMITS = GenerationLimits(max_new_tokens=6)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A saved GPT-2 with dropout, so that random states matter."""
    backbone = make("gpt2")
    backbone.model.config.resid_pdrop = backbone.model.config.embd_pdrop = 0.1
    folder = tmp_path_factory.mktemp("gpt2")
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return save_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def runs(gpt2, task, tmp_path_factory):
    """One finished run a method."""
    root = tmp_path_factory.mktemp("runs")
    return {
        name: train(run_config(gpt2, task, root / name, **changes), progress=False)
        for name, changes in METHODS.items()
    }


def losses(backbone):
    return target_loss(backbone, ROWS, [None] * len(ROWS)).per_target.detach()


@pytest.mark.parametrize("method", METHODS)
def test_it_learns(runs, method):
    rows = [row["loss"] for row in metrics(runs[method].run_dir) if "loss" in row]
    assert rows[-1] < 0.97 * rows[0]
    assert runs[method].prompt is None


@pytest.mark.parametrize("method", METHODS)
def test_resumed_is_uninterrupted_to_the_last_bit(runs, method, gpt2, task, tmp_path):
    def stops(backbone, prompt, step):
        if step == 8:
            raise KeyboardInterrupt
        return {}

    config = run_config(gpt2, task, tmp_path / "cut", **METHODS[method])
    with pytest.raises(KeyboardInterrupt):
        train(config, evaluator=stops, progress=False)
    assert read_latest(config.run_dir).state["step"] == 6
    torch.manual_seed(99)  # another process would be in another random state
    again, whole = resume(config.run_dir, progress=False), runs[method]
    assert (again.run_dir / "metrics.jsonl").read_bytes() == (whole.run_dir / "metrics.jsonl").read_bytes()
    assert {p.name for p in again.artifact_dir.iterdir()} == {p.name for p in whole.artifact_dir.iterdir()}
    for path in whole.artifact_dir.iterdir():
        assert path.read_bytes() == (again.artifact_dir / path.name).read_bytes(), path.name


@pytest.mark.parametrize("method", list(METHODS)[1:])
def test_the_artefact_holds_the_trained_parameters_alone_to_the_bit(runs, method):
    result = runs[method]
    stored = load_file(result.artifact_dir / "adapter_model.safetensors")
    best = next((result.run_dir / "checkpoints").glob(f"best-{result.best_step:08d}"))
    trained = load_file(best / "tensors.safetensors")
    renamed = {name.replace(".default", ""): tensor for name, tensor in trained.items()}  # PEFT drops adapters' names
    assert set(stored) == set(renamed)
    assert all(torch.equal(stored[name], renamed[name]) for name in stored)
    assert read_baseline(result.artifact_dir).recipe["method"] == METHODS[method]["method"]


@pytest.mark.parametrize("method", METHODS)
def test_loading_gives_the_trained_model_to_the_bit_and_leaves_the_untouched_one(runs, method, gpt2):
    plain, subject = load_subjects(runs[method].run_dir)
    reference = load_backbone(gpt2)
    assert plain.backbone.state_digest() == reference.state_digest()
    assert not torch.equal(losses(subject.backbone), losses(reference))
    assert not any(p.requires_grad for p in subject.backbone.model.parameters())
    assert not subject.backbone.model.training
    titles = {"top_layers": "top1", "top_layers_embedding": "top2-embedding", "adapter": "adapter3", "lora": "lora2"}
    assert subject.name == titles.get(method, method)
    again = load_subjects(runs[method].artifact_dir)[1]  # the artefact alone, without its run
    assert torch.equal(losses(again.backbone), losses(subject.backbone))
    assert again.outputs(["abc", "d"], LIMITS) == subject.outputs(["abc", "d"], LIMITS)


@pytest.mark.parametrize("method", list(METHODS)[1:])
def test_the_loaded_model_has_the_dev_loss_that_training_saw(runs, method):
    result = runs[method]
    assert result.best_dev is not None
    subject = load_subjects(result.run_dir)[1]
    data = load_data(read_config(result.run_dir), subject.backbone)
    rows = [Row(e.source_ids, (e.target_ids,), data.tail) for e in data.dev]
    loss = target_loss(subject.backbone, rows, [None] * len(rows))
    assert float(loss.sum.detach()) / loss.num_tokens == pytest.approx(result.best_dev, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_and_lora_start_as_the_identity_to_the_bit(family):
    backbone = make(family)
    before = losses(backbone)
    digest = backbone.state_digest()
    adapter = Adapter(AdapterSpec(bottleneck=7), backbone, seed=3)
    assert torch.equal(losses(backbone), before)
    assert backbone.state_digest() == digest  # adapters stand outside the model
    for module in adapter.adapters.values():
        torch.nn.init.normal_(module.up.weight)
    assert not torch.isclose(losses(backbone), before).any()  # and it is in the way of every row
    other = make(family)
    Lora(LoraSpec(targets=("all-linear",)), other, seed=3)
    assert torch.allclose(losses(other), before, rtol=0, atol=0)


def test_seeds_give_adapters_and_lora_their_first_values():
    def first(kind, seed):
        torch.rand(5)  # whatever the global generator has been through
        make_one = {"adapter": lambda b: Adapter(AdapterSpec(bottleneck=2), b, seed),
                    "lora": lambda b: Lora(LoraSpec(), b, seed)}[kind]
        return next(p for n, p in make_one(make("llama")).parameters().items() if "down.weight" in n or "lora_A" in n)

    for kind in ("adapter", "lora"):
        assert torch.equal(first(kind, 1), first(kind, 1))
        assert not torch.equal(first(kind, 1), first(kind, 2))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_loras_files_load_in_peft_and_give_its_logits(runs, gpt2):
    peft = pytest.importorskip("peft")
    directory = runs["lora"].artifact_dir
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt2), str(directory)).eval()
    ids = torch.tensor([[5, 6, 7, 8, 20]])
    ours = load_subjects(directory)[1].backbone.model(ids).logits
    theirs = model(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(theirs, load_backbone(gpt2).model(ids).logits, atol=1e-2)
    config = json.loads((directory / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 32, str(gpt2))


def test_evaluation_reports_that_the_model_has_changed(runs, task):
    found = evaluate(runs["adapter"].run_dir, split="dev", resamples=0)
    assert list(found.scores) == ["untouched", "adapter3"]
    assert not found.forgetting.unchanged


@pytest.mark.parametrize("method", ["adapter", "top_layers", "lora"])
def test_another_backbone_is_refused(runs, method, tmp_path):
    other = save_backbone(tmp_path / "llama")
    with pytest.raises(ArtifactError, match=r"learned on another backbone .*differs in config"):
        load_subjects(runs[method].artifact_dir, other)


def test_damage_is_told(runs, tmp_path, gpt2):
    copy = shutil.copytree(runs["adapter"].artifact_dir, tmp_path / "copy")
    weights = copy / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="content digest differs"):
        apply_baseline(copy, load_backbone(gpt2))
    manifest = copy / "foreword.json"
    tree = json.loads(manifest.read_text())
    for changes, words in (
        ({"spec": {"bottleneck": 4}}, r"tensor 'block0\.down\.bias' is \(3,\), the adapter needs \(4,\)"),
        ({"method": "adaptor"}, "'adaptor' cannot be put on a backbone; did you mean 'adapter'"),
        ({"version": 99}, "format version 99 is unknown"),
        ({"strange": 1}, "unknown field 'strange'"),
    ):
        manifest.write_text(json.dumps({**tree, **changes}))
        with pytest.raises(ArtifactError, match=words):
            apply_baseline(copy, load_backbone(gpt2))


def cut(folder):
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def change(name, text):
    return lambda folder: (folder / name).write_text(text)


def lack(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize("damage", [
    cut, lack("adapter_model.safetensors"), lack("adapter_config.json"), change("adapter_config.json", "{"),
    change("adapter_config.json", '{"peft_type": "NONE"}'),
])
def test_a_damaged_lora_is_told_and_never_looked_for_on_the_hub(runs, tmp_path, gpt2, damage, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", lambda *a, **k: pytest.fail("asked the hub"))
    copy = shutil.copytree(runs["lora"].artifact_dir, tmp_path / "copy")
    damage(copy)
    with pytest.raises(ArtifactError, match=str(copy)):
        apply_baseline(copy, load_backbone(gpt2))


def test_an_adapter_without_its_width_is_told(runs, tmp_path, gpt2):
    copy = shutil.copytree(runs["adapter"].artifact_dir, tmp_path / "copy")
    tree = json.loads((copy / "foreword.json").read_text())
    (copy / "foreword.json").write_text(json.dumps({**tree, "spec": {}}))
    with pytest.raises(ArtifactError, match=r"spec\.bottleneck is missing"):
        apply_baseline(copy, load_backbone(gpt2))


def test_a_baseline_is_no_soft_prompt(runs):
    with pytest.raises(ArtifactError, match="holds a lora, no soft prompt"):
        load_prompt(runs["lora"].artifact_dir)


@pytest.mark.parametrize("times", [float("nan"), float("inf"), 0.0])
def test_a_width_that_is_no_number_is_refused_before_anything_is_made(times):
    with pytest.raises(ConfigError, match=r"adapter\.times = .* must be positive and finite"):
        AdapterSpec(match_prefix=2, times=times)


def test_two_saved_baselines_do_not_add_up_in_silence(runs, gpt2):
    backbone = load_backbone(gpt2)
    apply_baseline(runs["adapter"].artifact_dir, backbone)
    with pytest.raises(BackboneError, match="already carries 'adapter'"):
        apply_baseline(runs["top_layers"].artifact_dir, backbone)


def test_a_run_on_another_backbone_is_not_resumed(gpt2, task, tmp_path):
    folder = shutil.copytree(gpt2, tmp_path / "backbone")
    config = run_config(folder, task, tmp_path / "run", steps=3, **METHODS["adapter"])
    train(config, progress=False)
    save_backbone(folder, "gpt2")  # the same form, other dropout
    with pytest.raises(TrainingError, match="backbone is not what this run was started with"):
        resume(config.run_dir, progress=False)


def test_usage_is_written_with_the_times(runs):
    rows = [json.loads(line) for line in (runs["adapter"].run_dir / "times.jsonl").read_text().splitlines()]
    assert rows[-1]["trained"] == 3 * (2 * 64 + 65 * 3 + 4 * 64)
    assert 50e6 < rows[-1]["peak_bytes"] < 1e11
    assert rows[-1]["seconds"] > 0


def test_a_rehearsal_says_how_much_would_train(gpt2, task, tmp_path):
    seen = rehearse(run_config(gpt2, task, tmp_path / "run", **METHODS["adapter"]))
    assert seen.num_parameters == 3 * (2 * 64 + 65 * 3 + 4 * 64)
    assert "adapter3" in seen.init and not (tmp_path / "run").exists()


def test_words_stand_before_every_source(gpt2, task, tmp_path):
    config = run_config(gpt2, task, tmp_path / "run", steps=1, data={"words": "say:"}, **METHODS["adapter"])
    train(config, progress=False)
    plain, subject = load_subjects(config.run_dir)
    bare = load_backbone(gpt2)
    wanted = encode_source(bare.tokenizer, "say: abc", get_format("paper"))
    for one in (plain, subject):
        assert one._rows(["abc"], LIMITS)[0].source == wanted
    with pytest.raises(ConfigError, match=r"data\.words = 'say:' is for methods without a soft prompt"):
        run_config(gpt2, task, tmp_path / "prompt", data={"words": "say:"})


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_sharded_only_beneath_a_prompt(method, gpt2, task, tmp_path):
    with pytest.raises(ConfigError, match="does not go with method"):
        run_config(gpt2, task, tmp_path / "run", shard=True, **METHODS[method])
