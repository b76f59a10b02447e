"""The study's part on tasks: zero-shot matrix, similarities, their correlation, and starts from other prompts."""

from dataclasses import asdict
from typing import Any

import numpy as np
from transfer_runs import Study, label

from foreword.artifact import save_prompt
from foreword.compose.correlation import rank_correlation
from foreword.compose.library import mix_prompts, rank_library, spot_weights
from foreword.compose.neurons import overlap_matrices
from foreword.compose.similarity import MEASURES, similarity_matrix
from foreword.compose.transfer import UNTOUCHED, Curve, TransferMatrix, ZeroShot, speed_up
from foreword.prompts.soft_prompt import SoftPrompt

CHOSEN_BY = "ON"
"""The measure that chooses sources; Su et al. find it the best indicator, and the study tests that beside it."""

STARTS = ("most similar", "mixture of 3", "best zero-shot (oracle)", "least similar (control)")


def own_prompts(study: Study, source: str, seed: int) -> dict[str, SoftPrompt]:
    """Return every task's own prompt on a backbone, trained from a plain start."""
    places = {task: study.run(source, task, "own", seed) for task in study.settings.tasks}
    return {task: study.prompt(source, place) for task, place in places.items()}


def matrix(study: Study, seed: int) -> TransferMatrix:
    """Return every task's own prompt, and none, on every task."""
    source, tasks = study.settings.backbone, study.settings.tasks
    prompts = {**own_prompts(study, source, seed), UNTOUCHED: None}
    cells: dict[str, dict[str, ZeroShot]] = {}
    for name, prompt in prompts.items():
        cells[name] = {
            task: study.zero_shot(f"matrix/{name}-on-{task}-s{seed}", source, task, prompt, study.settings.generate)
            for task in tasks
        }
    return TransferMatrix(tuple(prompts), tuple(tasks), cells)


def similarities(study: Study, seed: int) -> dict[str, list[list[float]]]:
    """Return every measure of every pair of tasks' own prompts, ON by groups of three layers."""

    def make() -> dict[str, Any]:
        prompts = own_prompts(study, study.settings.backbone, seed)
        tables = {name: similarity_matrix(prompts, name) for name in MEASURES}
        groups = overlap_matrices(study.backbone(study.settings.backbone), prompts)
        tables |= {f"ON {name}": table for name, table in groups.items()}
        return {name: table.tolist() for name, table in tables.items()}

    return study.once(f"similarities-s{seed}", make)


def correlations(study: Study, seed: int) -> dict[str, dict[str, Any]]:
    """Return each measure's rank correlation with relative transfer: all pairs, and each target's sources apart."""

    def make() -> dict[str, Any]:
        relative, found = matrix(study, seed).relative().numpy(), similarities(study, seed)
        keep = [i for i in range(len(relative)) if np.isfinite(relative[:, i]).all()]  # a prompt that gained nothing
        left_out = [task for i, task in enumerate(study.settings.tasks) if i not in keep]
        if len(keep) < 3:
            return {"left_out": left_out, "measures": {}}
        measures = {}
        for name, table in found.items():
            both = [np.asarray(t)[np.ix_(keep, keep)] for t in (table, relative)]
            rng = np.random.default_rng(seed)
            measures[name] = {
                "pooled": asdict(rank_correlation(*both, rng)),
                "per_target": asdict(rank_correlation(*both, rng, pooled=False)),
            }
        return {"left_out": left_out, "measures": measures}

    return study.once(f"correlations-s{seed}", make)


def starts(study: Study, task: str, seed: int) -> dict[str, dict[str, Any]]:
    """Return each start's sources, speed-up against the plain start, and final figures on one task."""

    def make() -> dict[str, Any]:
        source = study.settings.backbone
        own = study.run(source, task, "own", seed)
        curve, final = study.outcome(source, task, own)
        plain = with_start(curve, study.plain_start(source, task, seed))
        found = {"plain": {"sources": {}, "curve": asdict(plain), "final": asdict(final)}}
        for name, weights in choose(study, task, seed).items():
            found[name] = {"sources": weights, **_started(study, task, seed, name, weights, plain)}
        return found

    return study.once(f"starts/{task}-s{seed}", make)


def choose(study: Study, task: str, seed: int) -> dict[str, dict[str, float]]:
    """Return each start's weights by source task.

    Similarity is of a short run of the task's own (SPoT's task embedding), as nobody has its final prompt yet.
    """
    source, s = study.settings.backbone, study.settings
    query = study.prompt(source, study.run(source, task, "query", seed, steps=s.query_steps))
    others = {name: p for name, p in own_prompts(study, source, seed).items() if name != task}
    ranking = rank_library(query, others, CHOSEN_BY, study.backbone(source))
    losses = {name: matrix(study, seed).cells[name][task].loss for name in others}
    oracle = min(losses, key=losses.__getitem__)
    return dict(
        zip(STARTS, ({ranking[0][0]: 1.0}, spot_weights(ranking, 3), {oracle: 1.0}, {ranking[-1][0]: 1.0}), strict=True)
    )


def _started(
    study: Study, task: str, seed: int, name: str, weights: dict[str, float], plain: Curve
) -> dict[str, Any]:
    source = study.settings.backbone
    own = own_prompts(study, source, seed)
    start = mix_prompts([own[other] for other in weights], list(weights.values()))
    key = name.split(" (")[0].replace(" ", "-")
    place = study.out / "starts" / label(source) / task / f"{key}-s{seed}"
    if not place.is_dir():
        save_prompt(start, place, study.backbone(source), recipe={"mixture": weights})
    run = study.run(source, task, key, seed, start=place)
    curve, final = study.outcome(source, task, run, start)
    return {"curve": asdict(curve), "final": asdict(final), "speed": asdict(speed_up(plain, curve))}


def with_start(curve: Curve, loss: float) -> Curve:
    """Return a curve with its value before the first step."""
    return Curve((0, *curve.steps), (loss, *curve.values), curve.lower_is_better)
