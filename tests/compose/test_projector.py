"""Projectors: the identity is the identity, both trainings learn, gradients reach the projector alone, seeds decide."""

import pytest
import torch
from toy import EXAMPLES, drawn_prompt

from foreword.artifact import load_prompt, save_prompt
from foreword.compose.activations import fit_states
from foreword.compose.projector import FlatMap, ProjectorSpec, make_projector, project
from foreword.compose.projector_training import (
    FitConfig,
    fit_distance,
    fit_pairs,
    fit_task,
    solve_projector,
    task_loss,
)
from foreword.compose.recycle import embedding_map, shared_tokens
from foreword.errors import ConfigError, PromptError
from foreword.prompts.batch import Row
from foreword.train.loss import target_loss

TEXTS = ["".join(chr(33 + (i * i + 7 * k + i * k * k) % 90) for k in range(40)) for i in range(12)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def prompts_of(backbone, count, **spec):
    made = [drawn_prompt(backbone, seed, **spec) for seed in range(count)]
    for seed, prompt in enumerate(made):
        with torch.no_grad():
            for name in prompt.tables:
                prompt.tables[name].weight.normal_(generator=seeded(seed))
    return made


def closeness(made, wanted):
    with torch.no_grad():
        return max(float((made.table(n) - wanted.table(n)).norm() / wanted.table(n).norm()) for n in wanted.tables)


def test_a_token_projector_set_to_the_identity_changes_no_bit(backbone_of):
    llama = backbone_of("llama")
    prompt = prompts_of(llama, 1, kind="prompt")[0]
    projector = make_projector(ProjectorSpec("token"), prompt, llama, llama, seeded())
    projector.parts["embedding"].set_identity()
    assert torch.equal(project(projector, prompt, llama).table("embedding"), prompt.table("embedding"))


def test_the_map_from_prompts_to_themselves_is_the_identity_on_unseen_prompts(backbone_of):
    llama = backbone_of("llama")
    *known, unseen = prompts_of(llama, 21, kind="prompt")  # 20 x 4 rows span the 64 dimensions
    found = fit_pairs([(prompt, prompt) for prompt in known])
    projector = make_projector(ProjectorSpec("token"), unseen, llama, llama, seeded())
    solve_projector(projector, found)
    assert closeness(project(projector, unseen, llama), unseen) < 1e-5
    torch.testing.assert_close(found.weight, torch.eye(64, dtype=torch.float64), atol=1e-8, rtol=0)


def test_distance_training_finds_the_identity(backbone_of):
    llama = backbone_of("llama")
    *known, unseen = prompts_of(llama, 25, kind="prompt")
    projector = make_projector(ProjectorSpec("token"), unseen, llama, llama, seeded())
    losses = fit_distance(projector, [(p, p) for p in known], FitConfig(steps=400, lr=2e-2))
    assert losses[-1] < 1e-3 * losses[0]
    assert closeness(project(projector, unseen, llama), unseen) < 0.1


def test_maps_between_a_model_and_itself_are_the_identity_for_prefixes(backbone_of):
    llama = backbone_of("llama")
    prefix = prompts_of(llama, 1, kind="prefix")[0]
    projector = make_projector(ProjectorSpec("layers"), prefix, llama, llama, seeded())
    assert closeness(project(projector, prefix, llama), prefix) > 0.5
    solve_projector(projector, fit_states(llama, llama, TEXTS, ridge=0.0))
    assert closeness(project(projector, prefix, llama), prefix) < 1e-3


@pytest.mark.parametrize(
    "spec",
    [
        ProjectorSpec("flat", "leaky_relu", hidden=32),
        ProjectorSpec("flat", "tanh", hidden=32),
        ProjectorSpec("flat", "leaky_relu", hidden=32, layer_norm=False),
        ProjectorSpec("token", "leaky_relu"),
    ],
)
def test_every_form_learns_pairs_between_two_models(backbone_of, spec):
    llama, t5 = backbone_of("llama"), backbone_of("t5")
    pairs = list(zip(prompts_of(llama, 3, kind="prompt"), prompts_of(t5, 3, kind="prompt"), strict=True))
    projector = make_projector(spec, pairs[0][0], llama, t5, seeded())
    losses = fit_distance(projector, pairs, FitConfig(steps=150))
    assert losses[-1] < 0.7 * losses[0]
    project(projector, pairs[0][0], t5).check_backbone(t5)


def test_the_flat_projector_is_the_papers(backbone_of):
    """Flatten -> Linear -> LeakyReLU -> Linear -> LayerNorm a token, worked out by hand."""
    spec = ProjectorSpec("flat", "leaky_relu", hidden=5)
    part = FlatMap(2, 3, 4, spec)
    table = torch.randn(2, 3, generator=seeded())
    hidden = part.inner.weight @ table.reshape(6) + part.inner.bias
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    flat = (part.outer.weight @ hidden + part.outer.bias).reshape(2, 4)
    want = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(part(table), want, rtol=1e-4, atol=1e-5)
    with pytest.raises(PromptError, match="length 2, not 3"):
        part(torch.zeros(3, 3))


@pytest.mark.parametrize(("kind", "form"), [("prompt", "token"), ("prefix", "layers")])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_task_training_lowers_the_targets_loss_and_trains_the_projector_alone(backbone_of, kind, form, family):
    llama, target = backbone_of("llama"), backbone_of(family)
    before = target.state_digest()
    prompts = dict(zip("ab", prompts_of(llama, 2, kind=kind), strict=True))
    untouched = {name: prompt.state_dict() for name, prompt in prompts.items()}
    projector = make_projector(ProjectorSpec(form), prompts["a"], llama, target, seeded())
    data = {"a": EXAMPLES[:4], "b": EXAMPLES[4:]}
    with torch.no_grad():
        start = float(task_loss(projector, prompts, target, data, seeded(9), 16))
    fit_task(projector, prompts, target, data, seeded(), FitConfig(steps=25, rows=4))
    with torch.no_grad():
        assert float(task_loss(projector, prompts, target, data, seeded(9), 16)) < start - 0.05
    assert target.state_digest() == before
    assert not [p for p in target.model.parameters() if p.grad is not None]
    for name, prompt in prompts.items():
        assert all(torch.equal(t, untouched[name][key]) for key, t in prompt.state_dict().items())
        assert all(p.grad is None for p in prompt.parameters())


def test_the_task_loss_is_the_mean_of_the_tasks_losses(backbone_of):
    llama = backbone_of("llama")
    prompts = dict(zip("ab", prompts_of(llama, 2, kind="prompt"), strict=True))
    projector = make_projector(ProjectorSpec("token"), prompts["a"], llama, llama, seeded())
    projector.parts["embedding"].set_identity()
    data = {"a": EXAMPLES[:1], "b": EXAMPLES[4:5]}
    parts = []
    for task, prompt in prompts.items():
        row = Row(data[task][0].source_ids, (data[task][0].target_ids,))
        found = target_loss(llama, [row], [prompt])
        parts.append(float(found.sum.detach()) / found.num_tokens)
    loss = float(task_loss(projector, prompts, llama, data, seeded(), 3).detach())
    assert loss == pytest.approx(sum(parts) / 2, rel=1e-5)


def test_a_projector_may_start_from_the_recycling_map(backbone_of):
    llama, qwen = backbone_of("llama"), backbone_of("qwen3")
    prompt = prompts_of(llama, 1, kind="prompt")[0]
    projector = make_projector(ProjectorSpec("token"), prompt, llama, qwen, seeded())
    found = embedding_map(llama, qwen, *shared_tokens(llama, qwen))
    solve_projector(projector, found)
    made = project(projector, prompt, qwen).table("embedding")
    torch.testing.assert_close(made, found(prompt.table("embedding").detach()), rtol=1e-4, atol=1e-5)


def test_distance_can_be_added_to_the_task_loss(backbone_of):
    llama = backbone_of("llama")
    source, goal = prompts_of(llama, 2, kind="prompt")
    config = FitConfig(steps=40, rows=2, distance=100.0, lr=2e-2)
    near, free = (make_projector(ProjectorSpec("token"), source, llama, llama, seeded()) for _ in range(2))
    fit_task(near, {"a": source}, llama, {"a": EXAMPLES}, seeded(), config, pairs=[(source, goal)])
    fit_task(free, {"a": source}, llama, {"a": EXAMPLES}, seeded(), config)
    assert closeness(project(near, source, llama), goal) < 0.5 * closeness(project(free, source, llama), goal)


def test_the_same_seed_gives_the_same_bits(backbone_of):
    llama, qwen = backbone_of("llama"), backbone_of("qwen3")
    prompt = prompts_of(llama, 1, kind="prompt")[0]

    def run(seed):
        projector = make_projector(ProjectorSpec("token"), prompt, llama, qwen, seeded(seed))
        losses = fit_task(projector, {"a": prompt}, qwen, {"a": EXAMPLES}, seeded(seed), FitConfig(steps=5, rows=2))
        return losses, project(projector, prompt, qwen).table("embedding").detach()

    (first, table), (again, same), (other, _) = run(1), run(1), run(2)
    assert first == again and torch.equal(table, same) and first != other


def test_a_projected_prompt_folds_saves_and_loads(backbone_of, tmp_path):
    llama, qwen = backbone_of("llama"), backbone_of("qwen3")
    prompt = prompts_of(llama, 1, kind="prefix")[0]
    projector = make_projector(ProjectorSpec("layers"), prompt, llama, qwen, seeded())
    live = project(projector, prompt, qwen)
    plain = live.fold()
    assert [tuple(p.shape) for p in plain.parameters()] == [tuple(live.table("decoder").shape)]
    save_prompt(plain, tmp_path / "made", qwen)
    assert torch.equal(load_prompt(tmp_path / "made", qwen).table("decoder"), live.table("decoder"))


def test_what_cannot_be_projected_is_refused(backbone_of):
    llama, t5 = backbone_of("llama"), backbone_of("t5")
    prompt, prefix = drawn_prompt(llama, kind="prompt"), drawn_prompt(llama)
    with pytest.raises(PromptError, match="use layers"):
        make_projector(ProjectorSpec("token"), prefix, llama, t5, seeded())
    with pytest.raises(PromptError, match="use token or flat"):
        make_projector(ProjectorSpec("layers"), prompt, llama, llama, seeded())
    with pytest.raises(PromptError, match="lacks"):
        make_projector(ProjectorSpec("layers"), prefix, llama, t5, seeded())
    with pytest.raises(PromptError, match="a prompt or a prefix"):
        make_projector(ProjectorSpec("token"), drawn_prompt(llama, kind="infix"), llama, llama, seeded())
    with pytest.raises(ConfigError, match="makes 'flat' linear"):
        ProjectorSpec("flat")
    projector = make_projector(ProjectorSpec("token", "tanh"), prompt, llama, llama, seeded())
    with pytest.raises(ConfigError, match="cannot be the identity"):
        projector.parts["embedding"].set_identity()
    with pytest.raises(ConfigError, match="no pair"):
        fit_distance(projector, [])
    with pytest.raises(ConfigError, match="no examples; did you mean"):
        fit_task(projector, {"task": prompt}, llama, {"tasks": EXAMPLES}, seeded())
    layers = make_projector(ProjectorSpec("layers"), prefix, llama, llama, seeded())
    with pytest.raises(PromptError, match="made for a prefix at 3 sites, this prompt is a prompt"):
        fit_distance(layers, [(prompt, prompt)])
    with pytest.raises(PromptError, match="this prompt is a prefix at 2"):
        project(layers, drawn_prompt(llama, layers=(0, 1)), llama)
    with pytest.raises(PromptError, match="covers other layers"):
        fit_distance(layers, [(prefix, drawn_prompt(llama, layers=(0, 1)))])


def test_a_stack_that_the_target_lacks_is_left_out(backbone_of):
    t5, llama = backbone_of("t5"), backbone_of("llama")
    pairs = [(drawn_prompt(t5, seed), drawn_prompt(llama, seed)) for seed in range(2)]
    projector = make_projector(ProjectorSpec("layers"), pairs[0][0], t5, llama, seeded())
    before = fit_distance(projector, pairs, FitConfig(steps=20))
    assert set(projector.parts) == {"decoder"} and before[-1] < before[0]
    made = project(projector, pairs[0][0], llama)
    made.check_backbone(llama)
    assert made.table("decoder").shape == pairs[0][1].table("decoder").shape
