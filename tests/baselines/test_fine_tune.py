"""Full fine-tuning: every weight gets the plain model's gradient, and what is saved is an ordinary model."""

import pytest
import torch
from backbones import FAMILIES, make
from toy import EXAMPLES, metrics, recipe, run_config, save_backbone, save_task
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreword.backbone import load_backbone
from foreword.baselines.fine_tune import FineTune, FineTuneSpec
from foreword.errors import ArtifactError, BackboneError
from foreword.evaluate.subject import load_subjects
from foreword.train.job import resume, train
from foreword.train.parallel import World
from foreword.train.run_config import TrainBatch
from foreword.train.step import Trainee, train_step


def naive_loss(backbone):
    """The plain model's mean loss of a target token, one row at a time."""
    total, count = 0.0, 0
    for example in EXAMPLES:
        target = torch.tensor([example.target_ids])
        if backbone.is_encoder_decoder:
            config = backbone.model.config
            ids = torch.tensor([[config.decoder_start_token_id, *example.target_ids[:-1]]])
            logits = backbone.model(input_ids=torch.tensor([example.source_ids]), decoder_input_ids=ids).logits
        else:
            ids = torch.tensor([[*example.source_ids, *example.target_ids[:-1]]])
            logits = backbone.model(ids).logits[:, len(example.source_ids) - 1 :]
        total = total + torch.nn.functional.cross_entropy(logits[0], target[0], reduction="sum")
        count += target.numel()
    return total / count


@pytest.mark.parametrize("family", FAMILIES)
def test_the_step_is_plain_training_of_the_whole_model(family):
    backbone = make(family)
    learner = FineTune(FineTuneSpec(dropout=False), backbone, seed=0)
    settings = recipe(steps=1, method="fine_tune", batch=TrainBatch(rows=8))
    trainee = Trainee(learner, EXAMPLES, settings, World())
    loss = naive_loss(backbone)
    names, wanted = (
        list(trainee.parameters),
        torch.autograd.grad(loss, list(trainee.parameters.values()), allow_unused=True),
    )
    kept = {}
    trainee.optimiser.step = lambda lr: kept.update({name: p.grad for name, p in trainee.parameters.items()})
    (report,) = train_step(backbone, [trainee], World())
    assert report.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert sum(gradient is not None for gradient in wanted) > 10
    norm = torch.stack([g.norm() for g in wanted if g is not None]).norm()
    assert report.grad_norm.item() == pytest.approx(norm.item(), rel=1e-4)
    scale = min(1.0, 1.0 / norm.item())  # the clip at 1.0
    for name, gradient in zip(names, wanted, strict=True):
        if gradient is not None and gradient.any():
            assert (kept[name] - scale * gradient).abs().max() < 1e-5, name


def test_every_weight_moves_and_is_saved_as_an_ordinary_model(tmp_path):
    backbone, task = save_backbone(tmp_path / "backbone", "gpt2"), save_task(tmp_path / "task")
    config = run_config(backbone, task, tmp_path / "run", method="fine_tune", optim={"lr": 1e-3})
    result = train(config, progress=False)
    rows = [row["loss"] for row in metrics(result.run_dir) if "loss" in row]
    assert rows[-1] < rows[0]
    before = AutoModelForCausalLM.from_pretrained(backbone).state_dict()
    after = AutoModelForCausalLM.from_pretrained(result.artifact_dir).state_dict()
    assert set(before) == set(after)
    stuck = [name for name in before if torch.equal(before[name], after[name])]
    assert not [name for name in stuck if "wpe" not in name]
    assert AutoTokenizer.from_pretrained(result.artifact_dir)("ab").input_ids
    assert result.prompt is None


def test_it_is_compared_with_the_backbone_that_it_was_learned_on(tmp_path):
    learned = FineTune(FineTuneSpec(), load_backbone(save_backbone(tmp_path / "gpt2", "gpt2")), 0)
    learned.save(tmp_path / "tuned")
    with pytest.raises(ArtifactError, match="learned on another backbone"):
        load_subjects(tmp_path / "tuned", save_backbone(tmp_path / "llama"))
    assert load_subjects(tmp_path / "tuned", tmp_path / "gpt2")[0].name == "untouched"


def test_the_models_own_dropout_is_on_while_training_and_resumes(tmp_path):
    backbone = make("gpt2")
    backbone.model.config.resid_pdrop = backbone.model.config.embd_pdrop = 0.1
    backbone.model.save_pretrained(tmp_path / "backbone")
    backbone.tokenizer.save_pretrained(tmp_path / "backbone")
    task = save_task(tmp_path / "task")

    def config(name, **changes):
        return run_config(tmp_path / "backbone", task, tmp_path / name, method="fine_tune", **changes)

    whole = train(config("whole"), progress=False)
    still = train(config("still", fine_tune={"dropout": False}), progress=False)
    assert metrics(whole.run_dir)[0]["loss"] != metrics(still.run_dir)[0]["loss"]

    def stops(backbone, prompt, step):
        if step == 8:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train(config("cut"), evaluator=stops, progress=False)
    torch.manual_seed(99)  # another process would be in another random state
    again = resume(tmp_path / "cut", progress=False)
    assert (again.run_dir / "metrics.jsonl").read_bytes() == (whole.run_dir / "metrics.jsonl").read_bytes()
    for path in whole.artifact_dir.iterdir():
        assert path.read_bytes() == (again.artifact_dir / path.name).read_bytes(), path.name


def test_weights_in_half_precision_are_refused():
    backbone = make("llama")
    backbone.model.to(torch.bfloat16)
    with pytest.raises(BackboneError, match=r"set backbone\.dtype to float32"):
        FineTune(FineTuneSpec(), backbone, seed=0)
