"""How alike two soft prompts are, by their numbers alone: Su et al.'s four measures and SPoT's cosine of means.

Su et al. 2022 (RECIPES 3.1, `caculate_metric_value_for_correlation.py`), for prompts P1, P2 of P rows of W numbers:

    E_concat = 1 / (1 + |P1 - P2|)                    rows laid end to end
    E_avg    = 1 / (1 + mean_ij |p1_i - p2_j|)        every row with every row
    C_concat = cos(P1, P2)                            rows laid end to end
    C_avg    = mean_ij cos(p1_i, p2_j)
    C_mean   = cos(mean_i p1_i, mean_j p2_j)          Vu et al. 2022 (SPoT)

A prefix's row is all that one virtual token stores: keys and values of every layer and stack.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from foreword.errors import ConfigError, PromptError, nearest
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.shapes import Float

Rows = Float[Tensor, "P W"]
Measure = Callable[[Rows, Rows], float]


def e_concat(first: Rows, second: Rows) -> float:
    """Return 1 / (1 + Euclidean distance of the whole tables), in (0, 1]."""
    return 1 / (1 + float((first - second).norm()))


def e_avg(first: Rows, second: Rows) -> float:
    """Return 1 / (1 + mean distance of a row of one to a row of the other), in (0, 1]; P may differ."""
    return 1 / (1 + float(torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist").mean()))


def c_concat(first: Rows, second: Rows) -> float:
    """Return the cosine of the whole tables."""
    return float(F.cosine_similarity(first.flatten(), second.flatten(), dim=0))


def c_avg(first: Rows, second: Rows) -> float:
    """Return the mean cosine of a row of one with a row of the other; P may differ."""
    return float((F.normalize(first, dim=1) @ F.normalize(second, dim=1).T).mean())


def c_mean(first: Rows, second: Rows) -> float:
    """Return the cosine of the mean rows; P may differ."""
    return float(F.cosine_similarity(first.mean(0), second.mean(0), dim=0))


MEASURES: dict[str, Measure] = {
    "E_concat": e_concat, "E_avg": e_avg, "C_concat": c_concat, "C_avg": c_avg, "C_mean": c_mean,
}
NEEDS_EQUAL_LENGTHS = ("E_concat", "C_concat")


@torch.no_grad()
def prompt_rows(prompt: SoftPrompt) -> Rows:
    """Return a prompt as one table in float64 on the CPU, MLPs folded: its tables side by side."""
    return torch.cat([prompt.table(name).double().cpu() for name in prompt.tables], 1)


def similarity(first: SoftPrompt, second: SoftPrompt, measure: str = "C_avg") -> float:
    """Return how alike two prompts of one backbone are.

    Args:
        first: a prompt.
        second: a prompt of the same kind.
        measure: a name in `MEASURES`.

    Raises:
        ConfigError: no such measure.
        PromptError: the prompts differ in width, or in length where the measure compares row by row.
    """
    if measure not in MEASURES:
        raise ConfigError(f"measure = {measure!r} is unknown{nearest(measure, MEASURES)}")
    one, other = prompt_rows(first), prompt_rows(second)
    if one.shape[1] != other.shape[1]:
        raise PromptError(
            f"prompts of {one.shape[1]} and {other.shape[1]} numbers a virtual token cannot be compared; give prompts "
            "of one kind on one backbone"
        )
    if first.spec.kind != second.spec.kind or first.sites != second.sites:
        raise PromptError(
            f"a {first.spec.kind} at {len(first.sites)} sites and a {second.spec.kind} at {len(second.sites)}, or at "
            "others, cannot be compared; give prompts of one kind at the same layers"
        )
    if None not in (first.fingerprint, second.fingerprint) and first.fingerprint != second.fingerprint:
        raise PromptError("prompts learned on different backbones cannot be compared; project or recycle one of them")
    if measure in NEEDS_EQUAL_LENGTHS and len(one) != len(other):
        raise PromptError(f"{measure} needs equal lengths, not {len(one)} and {len(other)}; use E_avg, C_avg or C_mean")
    return MEASURES[measure](one, other)


def similarity_matrix(prompts: Mapping[str, SoftPrompt], measure: str = "C_avg") -> Float[Tensor, "N N"]:
    """Return the similarity of every prompt with every other, in the mapping's order; arguments as in `similarity`."""
    items = list(prompts.values())
    return torch.tensor([[similarity(a, b, measure) for b in items] for a in items], dtype=torch.float64)
