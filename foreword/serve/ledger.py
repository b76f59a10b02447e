"""What an engine counts, and what follows from it: tokens a second, and when a full queue will have room."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

RECENT_SEC = 10.0
LONGEST_WAIT_SEC = 60.0


@dataclass(frozen=True)
class EngineStats:
    """The engine at one moment; counters count from its start.

    Attributes:
        state: `new`, `running`, `draining` or `stopped`.
        running_rows, queued_rows: now.
        queued_tokens: text tokens and tokens to be made of what waits.
        cache_bytes, cache_limit_bytes: reserved for rows' keys and values, and the most that may be.
        prefix_bytes: of copies of running rows' prefixes that stand side by side.
        steps, prompt_tokens, made_tokens: so far.
        finished: rows by finish reason.
        refused: requests turned away because the queue was full.
        tok_per_sec: made tokens a second over the last ten seconds.
        step_rows, step_sec: rows in the last step, and how long it took.
        rows_by_foreword: running rows by name ("" for the plain backbone).
    """

    state: str
    running_rows: int = 0
    queued_rows: int = 0
    queued_tokens: int = 0
    cache_bytes: int = 0
    cache_limit_bytes: int = 0
    prefix_bytes: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    made_tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    tok_per_sec: float = 0.0
    step_rows: int = 0
    step_sec: float = 0.0
    rows_by_foreword: dict[str, int] = field(default_factory=dict)


@dataclass
class Ledger:
    """The engine's counters; its owner locks."""

    steps: int = 0
    prompt_tokens: int = 0
    made_tokens: int = 0
    refused: int = 0
    step_rows: int = 0
    step_sec: float = 0.0
    finished: dict[str, int] = field(default_factory=dict)
    _recent: deque[tuple[float, int, int]] = field(default_factory=deque)

    def count_step(self, made: int, new: int, seconds: float, rows: int) -> None:
        """Count one step: `made` tokens chosen, `new` tokens put into the cache, `rows` running."""
        self.steps += 1
        self.made_tokens += made
        self.prompt_tokens += max(new - made, 0)
        self.step_rows, self.step_sec = rows, seconds
        self._recent.append((time.monotonic(), made, new))
        self._forget()

    def rate(self) -> float:
        """Return tokens made a second over the last seconds."""
        return self._rate(1)

    def retry_after_sec(self, queued_tokens: int) -> float:
        """Return about when a tenth of what waits will be worked off: then there is room again."""
        rate = self._rate(2)
        if not rate:
            return 1.0
        return min(max(queued_tokens / rate / 10, 1.0), LONGEST_WAIT_SEC)

    def stats(self, **now: Any) -> EngineStats:
        """Return the counters with what is so now."""
        names = ("steps", "prompt_tokens", "made_tokens", "refused", "step_rows", "step_sec")
        kept = {name: getattr(self, name) for name in names}
        return EngineStats(**kept, finished=dict(self.finished), tok_per_sec=self.rate(), **now)

    def _rate(self, column: int) -> float:
        self._forget()
        if not self._recent:
            return 0.0
        span = max(time.monotonic() - self._recent[0][0], 1e-3)
        return sum(entry[column] for entry in self._recent) / span if len(self._recent) > 1 else 0.0

    def _forget(self) -> None:
        oldest = time.monotonic() - RECENT_SEC
        while self._recent and self._recent[0][0] < oldest:
            self._recent.popleft()
