"""PEERS D3 and D4: gradient checkpointing trains the prefix, and a saved prompt can be trained on."""

import pytest
import torch
from backbones import make
from toy import EXAMPLES, metrics, run_config

from foreword.artifact import load_prompt
from foreword.backbone import load_backbone
from foreword.config import build
from foreword.prompts.spec import InitSpec, PromptSpec
from foreword.prompts.tables import MlpTable
from foreword.train.job import train, train_prompt
from foreword.train.learner import PromptLearner


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "pythia"])
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_gradient_checkpointing_changes_no_step(family, kind):
    """PEFT trains nothing here, in silence (D3)."""
    spec = PromptSpec(kind=kind, length=4, init=InitSpec("normal"))
    backbone = make(family)
    plain = train_prompt(backbone, EXAMPLES, spec, steps=4)
    enable = getattr(backbone.model, "activation_checkpointing_enable", None)  # the name since Transformers 5.20 or so
    (enable or backbone.model.gradient_checkpointing_enable)({"use_reentrant": False})
    backbone.model.train()  # checkpoints are taken in training mode only; these models have no dropout
    again = train_prompt(backbone, EXAMPLES, spec, steps=4)
    assert again.final_loss == pytest.approx(plain.final_loss, rel=1e-6)
    for name, value in plain.prompt.state_dict().items():
        assert (again.prompt.state_dict()[name] - value).abs().max() < 1e-5


def test_a_saved_prompt_goes_on_with_its_mlp(saved_llama, toy_task, tmp_path):
    """PEFT saves no MLP and refuses to train a loaded prefix (D4)."""
    first = train(run_config(saved_llama, toy_task, tmp_path / "first"), progress=False)
    loaded = load_prompt(first.artifact_dir, unfolded=True)
    assert isinstance(loaded.tables["decoder"], MlpTable)
    for name, value in first.prompt.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    init = {"name": "artifact", "artifact": str(first.artifact_dir)}
    prompt = {"reparam": "mlp", "reparam_width": 16, "length": 4, "init": init}
    second = train(run_config(saved_llama, toy_task, tmp_path / "second", prompt=prompt), progress=False)
    start, end = metrics(first.run_dir), metrics(second.run_dir)
    assert end[0]["loss"] == pytest.approx(first.final_loss, abs=0.3)
    assert end[0]["loss"] < start[0]["loss"]
    assert second.best_dev < first.best_dev
    learner, report = PromptLearner.fresh(build(PromptSpec, prompt), load_backbone(saved_llama, device="cpu"), 1)
    assert "with its MLP" in report.detail
    for name, value in first.prompt.state_dict().items():
        assert torch.equal(learner.prompt.state_dict()[name], value), name
