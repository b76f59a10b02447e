"""Named tasks, and a user's own from a YAML file."""

from pathlib import Path

from foreword.errors import DataError, nearest
from foreword.tasks.classification import cb, mrpc, rte, sst2
from foreword.tasks.headlines import headlines_task
from foreword.tasks.own import OwnTask, own_task, task_from_yaml
from foreword.tasks.sentiment import sentiment_task
from foreword.tasks.summarise import aeslc, dialogsum
from foreword.tasks.table_to_text import dart, e2e, rnnlg, webnlg
from foreword.tasks.task import GenerationLimits, Task
from foreword.tasks.venues import venues_task

__all__ = ["TASKS", "GenerationLimits", "OwnTask", "Task", "get_task", "own_task", "task_from_yaml"]

TASKS: dict[str, Task] = {
    "e2e": e2e(),
    "webnlg": webnlg(),
    "dart": dart(),
    "rnnlg_restaurant": rnnlg("restaurant"),
    "rnnlg_hotel": rnnlg("hotel"),
    "sst2": sst2(),
    "mrpc": mrpc(),
    "rte": rte(),
    "cb": cb(),
    "aeslc": aeslc(),
    "dialogsum": dialogsum(),
    "venues": venues_task(),
    "sentiment": sentiment_task(),
    "headlines": headlines_task(),
}


def get_task(name: str) -> Task:
    """Return the task called `name`, or the one a YAML file describes when `name` ends in .yaml or .yml.

    Raises:
        DataError: no such task; names the nearest.
        ConfigError: the YAML file is missing or wrong.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return task_from_yaml(name)
    if name not in TASKS:
        raise DataError(f"unknown task {name!r}{nearest(name, TASKS)}")
    return TASKS[name]
