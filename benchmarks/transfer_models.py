"""The study's part on pairs of models: projectors and recycling on held-out tasks, and starts from what they make."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transfer_runs import Study, label, seed_of
from transfer_tasks import own_prompts, with_start

from foreword.artifact import load_prompt, save_prompt
from foreword.backbone import Backbone
from foreword.compose.projector import Projector, ProjectorSpec, make_projector, project
from foreword.compose.projector_training import FitConfig, fit_distance, fit_pairs, fit_task, solve_projector
from foreword.compose.recycle import recycle
from foreword.compose.transfer import speed_up
from foreword.data.examples import Example, get_format, tokenise
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.tasks import get_task

RECYCLED = "recycled (no training)"
METHODS = {
    "prompt": {
        "token, least squares": None,
        "token, task loss": ProjectorSpec("token"),
        "flat LeakyReLU, distance": ProjectorSpec("flat", "leaky_relu"),
        "flat LeakyReLU, task loss": ProjectorSpec("flat", "leaky_relu"),
        "flat tanh, task loss": ProjectorSpec("flat", "tanh"),
    },
    "prefix": {"layers, distance": ProjectorSpec("layers"), "layers, task loss": ProjectorSpec("layers")},
}
STARTED = {"prompt": (RECYCLED, "token, task loss"), "prefix": (RECYCLED, "layers, task loss")}
"""Whose prompts training goes on from: these, and no others, so that nothing is chosen after the fact."""


def transfer(study: Study, pair: list[str], task: str, seed: int) -> dict[str, dict[str, Any]]:
    """Return what each method's prompt does on a held-out task of the target: share of the own prompt's gain."""
    source, target = pair
    key = f"{label(source)}-to-{label(target)}/{task}-s{seed}"

    def make() -> dict[str, Any]:
        own = study.outcome(target, task, study.run(target, task, "own", seed))[1]
        name = f"outcomes/{label(target)}/{task}/untouched"
        floor = study.zero_shot(name, target, task, None, study.settings.generate)
        plain = study.plain_start(target, task, seed)
        found = {"own": asdict(own), "untouched": asdict(floor), "plain_start_loss": plain, "methods": {}}
        for name in (RECYCLED, *METHODS[study.settings.kind]):
            prompt = carried(study, pair, name, task, seed)
            cell = study.zero_shot(f"models/{key}/{name}", target, task, prompt, study.settings.generate)
            found["methods"][name] = {**asdict(cell), "share": _share(floor.loss, cell.loss, own.loss)}
        return found

    return study.once(f"models/{key}", make)


def starts(study: Study, pair: list[str], task: str, seed: int) -> dict[str, dict[str, Any]]:
    """Return the speed-up of starting the target's prompt from a carried one, against the plain start."""
    source, target = pair

    def make() -> dict[str, Any]:
        curve, final = study.outcome(target, task, study.run(target, task, "own", seed))
        plain = with_start(curve, study.plain_start(target, task, seed))
        found = {"plain": {"curve": asdict(plain), "final": asdict(final)}}
        for name in STARTED[study.settings.kind]:
            key = f"{label(source)}-{name.split(' (')[0].replace(', ', '-').replace(' ', '-')}"
            start = carried(study, pair, name, task, seed)
            run = study.run(target, task, f"from-{key}", seed, start=_place(study, pair, name, task, seed))
            started, end = study.outcome(target, task, run, start)
            found[name] = {
                "curve": asdict(started), "final": asdict(end), "speed": asdict(speed_up(plain, started))
            }
        return found

    return study.once(f"model-starts/{label(source)}-to-{label(target)}/{task}-s{seed}", make)


def carried(study: Study, pair: list[str], name: str, task: str, seed: int) -> SoftPrompt:
    """Return a task's source prompt as one method makes it a prompt of the target, saved once made."""
    place, (source, target) = _place(study, pair, name, task, seed), map(study.backbone, pair)
    if not place.is_dir():
        study.tell(f"carrying {task} from {label(pair[0])} to {label(pair[1])}: {name}, seed {seed}")
        prompt = study.prompt(pair[0], study.run(pair[0], task, "own", seed))
        if name == RECYCLED:
            made = recycle(prompt, source, target, texts=_texts(study)).prompt
        else:
            made = _carry(study, pair, name, prompt, seed)
        save_prompt(made, place, target, recipe={"carried": {"from": label(pair[0]), "method": name}})
    return load_prompt(place, target)


def _place(study: Study, pair: list[str], name: str, task: str, seed: int) -> Path:
    return study.out / "carried" / f"{label(pair[0])}-to-{label(pair[1])}" / name.replace(" ", "-") / f"{task}-s{seed}"


def _carry(study: Study, pair: list[str], name: str, prompt: SoftPrompt, seed: int) -> SoftPrompt:
    """Project a prompt by the method's projector, trained on the tasks that are not held out (and kept in memory)."""
    key = (*pair, name, seed)
    if key not in study.projectors:
        study.projectors[key] = _trained(study, pair, name, prompt, seed)
    return project(study.projectors[key], prompt, study.backbone(pair[1])).fold()


def _trained(study: Study, pair: list[str], name: str, prompt: SoftPrompt, seed: int) -> Projector:
    source, target = map(study.backbone, pair)
    generator = torch.Generator().manual_seed(seed_of(f"{pair[0]}-{pair[1]}", name, seed))
    mine = {t: study.prompt(pair[0], study.run(pair[0], t, "own", seed)) for t in study.settings.training_tasks}
    spec = METHODS[study.settings.kind][name]
    config = FitConfig(steps=study.settings.projector_steps, rows=max(1, study.settings.rows // 2))
    if name.endswith("task loss"):
        projector = make_projector(spec, prompt, source, target, generator)
        form = get_format(None, target.is_encoder_decoder)
        fit_task(projector, mine, target, _data(study, target), generator, config, tail=form.tail)
        return projector
    theirs = {t: study.prompt(pair[1], study.run(pair[1], t, "own", seed)) for t in mine}
    pairs = [(mine[t], theirs[t]) for t in mine]
    projector = make_projector(spec or ProjectorSpec("token"), prompt, source, target, generator)
    if spec is None:
        solve_projector(projector, fit_pairs(pairs, ridge=1e-2, intercept=True))
    else:
        fit_distance(projector, pairs, config)
    return projector


def _data(study: Study, target: Backbone) -> dict[str, list[Example]]:
    form, found = get_format(None, target.is_encoder_decoder), {}
    for name in study.settings.training_tasks:
        task = get_task(name)
        records = task.load("train", study.settings.limit)
        found[name] = tokenise(records, target.tokenizer, form, study.settings.max_source, task.max_target).examples
    return found


def _texts(study: Study) -> list[str]:
    """Plain texts for recycling prefixes: training targets of the tasks that are not held out."""
    tasks = [get_task(name).load("train", 40) for name in study.settings.training_tasks]
    return [target for records in tasks for record in records for target in record.targets[:1]]


def _share(floor: float, loss: float, own: float) -> float | None:
    return (floor - loss) / (floor - own) if floor > own else None


def everything(study: Study) -> list[tuple[list[str], str, int]]:
    """Return every pair, held-out task and seed."""
    s = study.settings
    held = [*s.held_inside, *s.held_outside]
    return [(pair, task, seed) for pair in s.pairs for task in held for seed in range(s.seeds)]


def prepare(study: Study) -> None:
    """Train every prompt that the pairs need."""
    sources = dict.fromkeys(source for pair in study.settings.pairs for source in pair)
    for source in sources:
        for seed in range(study.settings.seeds):
            own_prompts(study, source, seed)
