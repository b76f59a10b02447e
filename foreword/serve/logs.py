"""Structured logs: one JSON object a line. Never a prompt, an answer or a key."""

import json
import logging
import sys
import time
from typing import Any, TextIO

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, event, and whatever `extra` gave."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        row: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        row |= {key: value for key, value in vars(record).items() if key not in STANDARD and not key.startswith("_ray")}
        if record.exc_info:
            row["traceback"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str, ensure_ascii=False)


def make_log(stream: TextIO | None = None, level: int = logging.INFO) -> logging.Logger:
    """Return a logger of its own (no global one is touched) that writes JSON lines to `stream`, stderr by default."""
    log = logging.Logger("foreword.serve", level)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    return log
