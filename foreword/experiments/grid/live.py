"""A grid in the terminal while it runs: a live table, or plain lines where there is none."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from foreword.experiments.grid.spec import Grid
from foreword.experiments.grid.state import Row, counts, progress_of

ORDER = {"running": 0, "failed": 1, "done": 2, "waiting": 3, "found": 4}
COLOURS = {"running": "bold", "failed": "red", "done": "green", "waiting": "dim", "found": "dim green"}


class Board:
    """The live table; used in a `with`."""

    def __init__(self, grid: Grid, rows: Sequence[Row], tell: Callable[[str], None] | None) -> None:
        """Show `rows`; with `tell`, lines go there and there is no table."""
        from rich.console import Console
        from rich.live import Live

        self.grid, self.rows, self.tell = grid, rows, tell
        self.started = time.monotonic()
        console = Console(stderr=True)
        self.live: Any = None
        if tell is None and console.is_terminal:
            self.live = Live(get_renderable=self.table, console=console, refresh_per_second=2, transient=False)
        elif tell is None:
            self.tell = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Board":
        """Start showing."""
        if self.live is not None:
            self.live.start()
        elif self.tell is not None:
            self.tell(f"{self.grid.name}: {self.summary()}")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop showing; the last table stays."""
        if self.live is not None:
            self.live.stop()

    def say(self, row: Row) -> None:
        """Tell of a row whose state has changed, where there is no table."""
        if self.live is None and self.tell is not None:
            detail = f": {row.detail}" if row.detail else ""
            self.tell(f"{self.grid.name}: {row.state} {row.title} ({row.piece.address}){detail}")

    def refresh(self) -> None:
        """Draw the table anew."""
        if self.live is not None:
            self.live.refresh()

    def summary(self) -> str:
        """Return how many rows are in which state, and the time."""
        parts = [f"{count} {state}" for state, count in counts(self.rows).items()]
        return f"{', '.join(parts)} after {time.monotonic() - self.started:.0f} s"

    def table(self) -> Any:
        """Return the table: what runs and what failed first, as many rows as the terminal is high."""
        from rich.console import Console
        from rich.table import Table

        height = max(5, Console(stderr=True).height - 6)
        found = Table(title=self.grid.name, caption=self.summary(), title_justify="left", caption_justify="left")
        for name in ("run", "state", "detail"):
            found.add_column(name, overflow="ellipsis", no_wrap=True)
        for row in sorted(self.rows, key=lambda row: ORDER[row.state])[:height]:
            detail = progress_of(self.grid.store, row.piece) if row.state == "running" else row.detail
            found.add_row(row.title, row.state, detail, style=COLOURS[row.state])
        if len(self.rows) > height:
            found.add_row(f"… and {len(self.rows) - height} more", "", "", style="dim")
        return found
