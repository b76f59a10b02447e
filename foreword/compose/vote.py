"""How the members of an ensemble agree: majority, mean of probabilities, ranked vote. Strings and numbers, no model.

Lester et al. 2021 (section 6) take the majority of predicted strings and leave ties open; here every tie has a rule.
Members stand in a fixed order, best first where that is known, and the order decides what nothing else does.
"""

from collections.abc import Sequence

from foreword.errors import ConfigError, nearest

RANK_RULES = ("borda", "runoff")


def majority(votes: Sequence[str], weights: Sequence[float] | None = None) -> str:
    """Return the string with most votes.

    A tie goes to the string whose voters have the larger sum of `weights`, then to the one whose first voter stands
    first among the members.

    Args:
        votes: N strings, one a member; compared as they are.
        weights: N numbers, for ties alone (dev scores, say); None goes straight to the members' order.

    Raises:
        ConfigError: no vote, or another number of weights.
    """
    _check(votes, weights)
    given = [1.0] * len(votes) if weights is None else weights
    heaviest: dict[str, tuple[int, float]] = {}
    for vote, weight in zip(votes, given, strict=True):
        count, sum_of_weights = heaviest.get(vote, (0, 0.0))
        heaviest[vote] = (count + 1, sum_of_weights + weight)
    return max(heaviest, key=heaviest.__getitem__)  # the first of equals: dicts keep the order of first voters


def mean_of_probabilities(tables: Sequence[Sequence[float]]) -> tuple[int, list[float]]:
    """Return the index of the largest mean probability (the first of equals), and the means.

    Args:
        tables: [N][C] each member's probability of each of C choices.

    Raises:
        ConfigError: no member, or members with different numbers of choices.
    """
    _check(tables)
    if len({len(table) for table in tables}) != 1 or not tables[0]:
        raise ConfigError(f"members give probabilities of {[len(t) for t in tables]} choices; all must give the same")
    means = [sum(column) / len(tables) for column in zip(*tables, strict=True)]
    return means.index(max(means)), means


def ranked(rankings: Sequence[Sequence[str]], rule: str = "borda") -> str:
    """Return the winner of a ranked vote.

    `borda`: the last of C candidates gets 0 points from a member, the first C - 1; most points win. `runoff`: the
    candidate with fewest first places leaves until one has more than half. Ties of points go by the members' first
    places; what is equal in these too, in either rule, by what the first member likes better.

    Args:
        rankings: [N][C] each member's candidates, best first; the same candidates for all.
        rule: `borda` or `runoff`.

    Raises:
        ConfigError: an unknown rule, no member, or members that rank different candidates.
    """
    _check(rankings)
    if rule not in RANK_RULES:
        raise ConfigError(f"rule = {rule!r} is no ranked vote{nearest(rule, RANK_RULES)}")
    candidates = list(rankings[0])
    for number, ranking in enumerate(rankings):
        if sorted(ranking) != sorted(set(candidates)):
            raise ConfigError(f"member {number} ranks {list(ranking)}, member 0 {candidates}; all must rank the same")
    return _borda(rankings) if rule == "borda" else _runoff(rankings, candidates)


def borda_points(rankings: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return each candidate's points, in the first member's order."""
    last = len(rankings[0]) - 1
    return {name: sum(last - list(ranking).index(name) for ranking in rankings) for name in rankings[0]}


def _borda(rankings: Sequence[Sequence[str]]) -> str:
    points, firsts = borda_points(rankings), _first_places(rankings, rankings[0])
    return max(points, key=lambda name: (points[name], firsts[name]))  # of equals, the first member's favourite


def _runoff(rankings: Sequence[Sequence[str]], left: Sequence[str]) -> str:
    left = list(left)
    while len(left) > 1:
        firsts = _first_places(rankings, left)
        leader = max(left, key=firsts.__getitem__)
        if 2 * firsts[leader] > len(rankings):
            return leader
        fewest = min(firsts.values())
        left.remove([name for name in left if firsts[name] == fewest][-1])  # what the first member likes least
    return left[0]


def _first_places(rankings: Sequence[Sequence[str]], left: Sequence[str]) -> dict[str, int]:
    """Return how many members like each of the candidates left best among those."""
    firsts = dict.fromkeys(left, 0)
    for ranking in rankings:
        firsts[next(name for name in ranking if name in firsts)] += 1
    return firsts


def _check(members: Sequence[object], weights: Sequence[float] | None = None) -> None:
    if not members:
        raise ConfigError("an ensemble of no member cannot vote; give at least one")
    if weights is not None and len(weights) != len(members):
        raise ConfigError(f"{len(weights)} weights for {len(members)} members; give one each")


__all__ = ["RANK_RULES", "borda_points", "majority", "mean_of_probabilities", "ranked"]
