"""Law 2: after an evaluation, a save or a generation, the next step still gives every prompt tensor a gradient.

And the trap of gradient checkpointing: a layer recomputed in another thread must still see the prompt, or refuse.
"""

import threading

import pytest
import torch
from lawbook import DECODERS, FAMILIES, copy_of, difference, drawn, random_rows, specs

from foreword.artifact import save_prompt
from foreword.errors import PromptError
from foreword.generate.offline import generate, logits
from foreword.prompts.inject import entrances
from foreword.prompts.soft_prompt import compile_prompt
from foreword.prompts.spec import PromptSpec
from foreword.train.loss import target_loss


def step(backbone, prompt, seed=0):
    """Return the gradient of every tensor of the prompt from one pass over two rows."""
    prompt.train()
    prompt.zero_grad(set_to_none=True)
    target_loss(backbone, random_rows([5, 9], seed, targets=(4, 6)), [prompt, prompt]).sum.backward()
    return {name: p.grad for name, p in prompt.named_parameters()}


def assert_alive(gradients):
    dead = [name for name, grad in gradients.items() if grad is None or not grad.any() or not grad.isfinite().all()]
    assert not dead, f"no gradient reaches {dead}"


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_survive_evaluation_saving_and_generation(name, backbone_of, tmp_path):
    backbone = backbone_of(name)
    for kind, spec in specs(name).items():
        prompt = drawn(backbone, spec)
        fresh = step(backbone, prompt)
        assert_alive(fresh)
        with torch.no_grad():
            target_loss(backbone, random_rows([6], 1, targets=(3,)), [prompt])
        generate(backbone, ["abc"], [prompt], max_new_tokens=2)
        logits(backbone, ["abc"], [prompt], targets=["x"] if backbone.is_encoder_decoder else None)
        if spec.is_leading and (spec.kind == "prefix" or not backbone.is_encoder_decoder):
            compile_prompt(prompt, backbone)
        save_prompt(prompt, tmp_path / f"{kind}", backbone)
        prompt.fold()
        again = step(backbone, prompt)
        assert_alive(again)
        assert all(torch.equal(again[key], fresh[key]) for key in fresh), "the same rows must give the same gradient"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_and_column_of_every_table_learns(name, backbone_of):
    """No number of a direct table is dead: each has a non-zero gradient on a batch of several rows."""
    backbone = backbone_of(name)
    for kind in ("prefix", "prompt", "suffix"):
        prompt = drawn(backbone, specs(name)[kind])
        gradients = step(backbone, prompt, seed=7)
        for key, grad in gradients.items():
            assert (grad != 0).float().mean() > 0.99, f"{kind}: {key} has dead numbers"


def checkpointed(backbone, **options):
    """Return a copy of the backbone that recomputes its layers in backward."""
    copied = copy_of(backbone)
    copied.model.train()
    if hasattr(copied.model, "activation_checkpointing_enable"):  # the name since Transformers 5.20 or so
        copied.model.activation_checkpointing_enable(options)
    else:
        copied.model.gradient_checkpointing_enable(options)
    return copied


def backward_elsewhere(loss):
    """Call backward from a thread that never saw the prompts, as autograd does on a GPU."""
    faults = []

    def work():
        try:
            loss.backward()
        except Exception as fault:
            faults.append(fault)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if faults:
        raise faults[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_gives_the_same_gradient_from_another_thread(name, backbone_of, measure):
    backbone, recomputing = backbone_of(name), checkpointed(backbone_of(name), use_reentrant=False)
    rows = random_rows([5, 12, 9], 3, targets=(4, 3))
    for kind in list(specs(name))[::2]:
        prompt = drawn(backbone, specs(name)[kind])
        neighbours = [prompt, drawn(backbone, PromptSpec(length=6), 5), None]
        plain = torch.autograd.grad(target_loss(backbone, rows, neighbours).sum, list(prompt.parameters()))
        calls = []
        layer = next(m for m in recomputing.model.modules() if hasattr(m, "foreword_site"))
        hook = layer.register_forward_hook(lambda *_, calls=calls: calls.append(threading.get_ident()))
        backward_elsewhere(target_loss(recomputing, rows, neighbours).sum)
        hook.remove()
        assert len(set(calls)) == 2, "the layer was not recomputed in the other thread, so nothing was tested"
        recomputed = [p.grad for p in prompt.parameters()]
        scale = max(1.0, *(g.abs().max().item() for g in plain))
        measure("2 checkpointing", name, difference([g / scale for g in recomputed], [g / scale for g in plain]))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_reentrant_checkpoints_are_refused_or_right(name, kind, backbone_of, measure):
    """They recompute under no_grad first, which would cut a prefix off in silence."""
    backbone, recomputing = backbone_of(name), checkpointed(backbone_of(name), use_reentrant=True)
    prompt, rows = drawn(backbone, specs(name)[kind]), random_rows([5, 12], 3, targets=(4,))
    if kind == "prefix" or name in DECODERS:
        with pytest.raises(PromptError, match="use_reentrant"):
            target_loss(recomputing, rows, [prompt, prompt])
        return
    plain = torch.autograd.grad(target_loss(backbone, rows, [prompt] * 2).sum, list(prompt.parameters()))
    ours = target_loss(recomputing, rows, [prompt] * 2).sum
    ours.backward()
    measure("2 checkpointing", name, difference([p.grad for p in prompt.parameters()], plain))


def test_a_model_that_hands_nothing_down_is_refused_under_checkpointing(backbone_of):
    recomputing = checkpointed(backbone_of("llama"), use_reentrant=False)
    for entrance in entrances(recomputing.model):  # what the probe finds on a model that drops keyword arguments
        entrance.foreword_hands_down = False
    prompt = drawn(recomputing, PromptSpec(length=3))
    with pytest.raises(PromptError, match="hands no keyword arguments"):
        target_loss(recomputing, random_rows([5], targets=(4,)), [prompt])
