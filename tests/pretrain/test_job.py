import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from foreword.config import build, load_yaml, override
from foreword.errors import ConfigError, ForewordError, TrainingError
from foreword.pretrain import pretrain
from foreword.pretrain.__main__ import main
from foreword.pretrain.ahead import Ahead
from foreword.pretrain.batch import compile_blocks
from foreword.pretrain.job import PretrainConfig, Run, read_metrics


class Killed(Exception):
    pass


def run(recipe: Path, *overrides: str) -> Path:
    return pretrain(recipe, list(overrides))


def test_a_recipe_gives_the_same_curve_and_weights_twice(recipe: Path, tmp_path: Path):
    first = run(recipe)
    second = run(recipe, f"run={tmp_path / 'again'}")
    assert read_metrics(first.parent) == read_metrics(second.parent)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    losses = [line["loss"] for line in read_metrics(first.parent) if "loss" in line]
    assert len(losses) == 8 and losses[-1] < losses[0]


@pytest.mark.parametrize("killed_after", [2, 4])
def test_a_killed_run_resumed_equals_an_uninterrupted_one(
    recipe: Path, tmp_path: Path, killed_after: int, monkeypatch: pytest.MonkeyPatch
):
    whole, elsewhere = run(recipe), f"run={tmp_path / 'killed'}"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "_step", _dying_after(killed_after, Run._step))
        run(recipe, elsewhere)
    resumed = run(recipe, elsewhere)
    assert read_metrics(whole.parent) == read_metrics(resumed.parent)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_a_run_saved_on_a_gpu_goes_on_on_a_cpu(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """There the rates are tensors and AdamW is of the fused kind that a graph can hold; here neither works."""
    whole, elsewhere = run(recipe, "optim.kind=muon_float32"), f"run={tmp_path / 'moved'}"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "_step", _dying_after(4, Run._step))
        run(recipe, "optim.kind=muon_float32", elsewhere)
    path = tmp_path / "moved" / "tiny" / "state.pt"
    state = torch.load(path, weights_only=True)
    for group in (group for optimizer in state["optimizers"] for group in optimizer["param_groups"]):
        group |= {"lr": torch.tensor(group["lr"])} | {key: True for key in ("fused", "capturable") if key in group}
    torch.save(state, path)
    assert read_metrics(run(recipe, "optim.kind=muon_float32", elsewhere).parent) == read_metrics(whole.parent)


def _dying_after(steps: int, step):
    def dying_step(self: Run) -> dict[str, torch.Tensor]:
        if self.progress.step == steps:
            raise Killed
        return step(self)

    return dying_step


def test_batches_made_ahead_are_the_steps_own(recipe: Path, tmp_path: Path):
    job = Run(build(PretrainConfig, override(load_yaml(recipe), [f"run={tmp_path}"])))
    ahead = Ahead(job._batches, workers=2)
    for step in (0, 1, 2, 5):
        made, wanted = ahead.take(step), job._batches(step)
        assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(made, wanted, strict=True))
    ahead.forget()
    assert not ahead.coming and torch.equal(ahead.take(6)[0].inputs, job._batches(6)[0].inputs)


@pytest.mark.filterwarnings("ignore")  # the compiler warns of itself
def test_compiled_blocks_give_the_plain_loss(recipe: Path, tmp_path: Path):
    job = Run(build(PretrainConfig, override(load_yaml(recipe), [f"run={tmp_path}"])))
    batch = job._batches(0)[0]
    plain = job.step.loss.per_target(job.model, batch)
    compile_blocks(job.model)
    torch.testing.assert_close(job.step.loss.per_target(job.model, batch), plain, rtol=1e-5, atol=1e-5)


def test_checkpoints_report_bits_per_byte_by_source_and_copying(recipe: Path):
    folder = run(recipe).parent
    measured = [line for line in read_metrics(folder) if "heldout" in line]
    assert [line["step"] for line in measured] == [4, 8]
    for line in measured:
        assert set(line["heldout"]) == {"wikipedia_en", "dialogue_sgd", "records", "echoes", "labels", "spans"}
        assert all(0 < bits < 12 for bits in line["heldout"].values())
        assert set(line["copy"]) == {"first_loss", "repeat_loss", "value_match"}


def test_accumulation_does_not_change_the_gradient(recipe: Path):
    split, whole = (
        Run(build(PretrainConfig, override(load_yaml(recipe), [f"name={n}", f"micro_rows={m}", f"accumulation={a}"])))
        for n, m, a in (("split", 3, 2), ("whole", 6, 1))
    )
    for job in (split, whole):
        batches = job._batches(0)
        targets = sum(int((b.targets >= 0).sum()) for b in batches)
        for batch in batches:
            (job.step.loss.per_target(job.model, batch).sum() / targets).backward()
    for one, other in zip(split.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_decoder_backbone_loads_in_transformers_with_its_card(recipe: Path):
    folder = run(recipe, "steps=2")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16 and model.config.vocab_size == len(tokenizer)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    card = (folder / "README.md").read_text()
    assert all(word in card for word in ("CC BY-SA 4.0", "wikipedia_en", "Copying", "Limits", "generators"))


def test_t5_is_pretrained_then_adapted(recipe: Path):
    t5 = ["family=t5", "steps=3"]
    base = run(recipe, *t5, "name=lm0", "objective=span_corruption")
    adapted = run(recipe, *t5, "name=lm10", "objective=prefix_lm", f"init={base}")
    before, after = (AutoModelForSeq2SeqLM.from_pretrained(folder) for folder in (base, adapted))
    assert not torch.equal(before.shared.weight, after.shared.weight)
    assert "| goes on from | `lm0`: 3 steps, 864 tokens, span_corruption |" in (adapted / "README.md").read_text()
    assert json.loads((adapted / "pretraining.json").read_text())["before"]["steps"] == 3
    output = after.generate(torch.tensor([[5, 6, 7, 1]]), max_new_tokens=4, do_sample=False)
    assert output.shape[1] <= 5


def test_loss_is_the_models_own(recipe: Path):
    for family, objective in (("decoder", "causal"), ("t5", "span_corruption"), ("t5", "prefix_lm")):
        job = Run(
            build(
                PretrainConfig,
                override(load_yaml(recipe), [f"name={objective}", f"family={family}", f"objective={objective}"]),
            )
        )
        batch = job._batches(0)[0]
        ours = job.step.loss.per_target(job.model, batch).sum() / (batch.targets >= 0).sum()
        inputs = {"input_ids": batch.inputs}
        if batch.decoder_inputs is not None:
            inputs["decoder_input_ids"] = batch.decoder_inputs
        logits = job.model(**inputs).logits
        theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_deadline_brings_the_decay_forward(recipe: Path):
    config = build(PretrainConfig, override(load_yaml(recipe), ["steps=100000", "deadline_sec=3", "eval_every=100000"]))
    job = Run(config)
    folder = job.train().parent
    assert job.progress.decay_start is not None and 50 < job.progress.stop < 100_000
    assert read_metrics(folder)[-1]["step"] == job.progress.stop
    rates = [line["lr_factor"] for line in read_metrics(folder) if "lr_factor" in line]
    assert max(rates) == 1.0 and rates[-1] < 0.2


@pytest.mark.parametrize(
    ("assignment", "error", "message"),
    [
        ("stepz=3", ConfigError, "'steps'"),
        ("objective=span_corruption", ConfigError, "decoder is causal"),
        ("context=512", ConfigError, "positions"),
        ("size=7m", ConfigError, "'6m'|1.5m"),
        ("data.tokens=5", ConfigError, "data.tokens"),
        ("init=/nowhere", ForewordError, "nowhere"),
    ],
)
def test_bad_recipes_are_one_line(recipe: Path, assignment: str, error: type[Exception], message: str, capsys):
    with pytest.raises(error, match=message):
        run(recipe, assignment, "name=bad")
    assert main([str(recipe), assignment, "name=bad2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_directory_keeps_its_recipe(recipe: Path):
    run(recipe, "steps=1")
    with pytest.raises(TrainingError, match="another config"):
        run(recipe, "steps=1", "optim.matrix_lr=0.5")


def test_a_loss_that_is_no_number_stops_the_run(recipe: Path):
    job = Run(build(PretrainConfig, load_yaml(recipe)))
    with torch.no_grad():
        job.model.get_input_embeddings().weight[5:] = float("nan")
    with pytest.raises(TrainingError, match="loss = nan at step 1"):
        job.train()
    assert not (job.folder / "state.pt").exists()


def test_the_resolved_config_is_written_first_and_reads_back(recipe: Path):
    folder = run(recipe, "steps=1").parent
    assert build(PretrainConfig, load_yaml(folder / "config.yaml")).steps == 1
    facts = (folder / "backbone" / "pretraining.json").read_text()
    assert json.loads(facts)["recipe"]["steps"] == 1
    assert str(recipe.parent) not in facts  # no path of the machine ships


def test_a_tokenizer_that_is_not_there_is_named(recipe: Path, tmp_path: Path):
    settings = [f"data.folder={tmp_path / 'new'}", f"data.tokenizer={tmp_path / 'none'}", f"run={tmp_path}"]
    with pytest.raises(ConfigError, match=r"data\.tokenizer = .*none.* holds no tokenizer\.json"):
        run(recipe, *settings)
    assert not (tmp_path / "new").exists()
