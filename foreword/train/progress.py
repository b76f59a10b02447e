"""What a person sees while training: a bar with loss, speed and ETA on a terminal, plain lines anywhere else."""

import sys
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SEC = 5.0
"""Plain lines come at most this often."""


class Display:
    """A progress display on stderr; use as a context manager."""

    def __init__(self, title: str, total: int, show: bool | None = None, stream: TextIO | None = None) -> None:
        """Prepare a display.

        Args:
            title: what is being trained.
            total: steps.
            show: True for a bar, False for nothing; None for a bar on a terminal and plain lines elsewhere.
            stream: where to write; None takes stderr.
        """
        self.title, self.total, self.show = title, total, show
        self.stream = stream or sys.stderr
        self._bar = self._make_bar() if show or (show is None and self.stream.isatty()) else None
        self._clock = time.monotonic()
        self._last_line = self._clock
        self._tokens = 0

    def __enter__(self) -> "Display":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, loss: float, tokens: int) -> None:
        """Show a step; `tokens` are the target tokens since the last update."""
        now = time.monotonic()
        self._tokens += tokens
        speed = self._tokens / max(1e-9, now - self._clock)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=loss, speed=speed)
        elif self.show is None and (now - self._last_line >= LINE_SEC or step == self.total):
            self._last_line = now
            self._print(f"step {step}/{self.total} loss {loss:.4f} {speed:,.0f} tok/s")

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        elif self.show is None:
            self._print(line)

    def _print(self, line: str) -> None:
        print(f"{self.title}: {line}", file=self.stream, flush=True)

    def _make_bar(self) -> Progress:
        columns = (
            TextColumn(self.title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[speed]:,.0f} tok/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        bar = Progress(*columns, console=Console(file=self.stream))
        self._task = bar.add_task(self.title, total=self.total, loss=float("nan"), speed=0.0)
        return bar
