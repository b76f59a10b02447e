"""Shared fixtures: one thread, one frozen backbone a family, and a table of the differences that the laws measured."""

import functools
from collections.abc import Callable

import pytest
import torch
from backbones import make

from foreword.backbone import Backbone

MEASURED = pytest.StashKey[dict[tuple[str, str], float]]()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny models are faster on one thread, and sums do not depend on the machine's cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def backbone_of() -> Callable[[str], Backbone]:
    """Return a family's tiny backbone, made once; tests must leave it as they found it."""
    return functools.cache(make)


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Callable[[str, str, float, float], None]:
    """Hold a law to its tolerance and keep the largest difference for the table at the end of the run."""

    def hold(law: str, family: str, difference: float, tolerance: float = 1e-5) -> None:
        table = request.config.stash.setdefault(MEASURED, {})
        table[law, family] = max(table.get((law, family), 0.0), difference)
        assert difference <= tolerance, f"{law} on {family}: {difference:.2e} > {tolerance:.0e}"

    return hold


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print laws x families with the largest difference each."""
    table = config.stash.get(MEASURED, {})
    if not table:
        return
    laws = sorted({law for law, _ in table})
    families = list(dict.fromkeys(family for _, family in table))
    terminalreporter.section("largest differences seen")
    width = max(len(law) for law in laws)
    terminalreporter.write_line(" ".join([" " * width, *(f"{family:>9}" for family in families)]))
    for law in laws:
        cells = [f"{table[law, f]:9.1e}" if (law, f) in table else " " * 9 for f in families]
        terminalreporter.write_line(" ".join([f"{law:<{width}}", *cells]))
