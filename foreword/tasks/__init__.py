"""Named tasks, and a user's own from a YAML file."""

from pathlib import Path

from foreword.errors import DataError, nearest
from foreword.tasks.classification import cb, mrpc, qqp, rte, sst2
from foreword.tasks.headlines import headlines_task
from foreword.tasks.news import cnn_dm, extrapolation_loader, news_to_sports, within_news, xsum
from foreword.tasks.own import OwnTask, own_task, task_from_yaml
from foreword.tasks.paraphrase import webnlg_paraphrase
from foreword.tasks.questions import MRQA_SETS, mrqa, squad, xquad_en
from foreword.tasks.sentiment import sentiment_task
from foreword.tasks.summarise import aeslc, dialogsum
from foreword.tasks.superglue import boolq, copa, multirc, record, wic, wsc
from foreword.tasks.table_to_text import dart, e2e, rnnlg, webnlg
from foreword.tasks.task import GenerationLimits, Task
from foreword.tasks.venues import venues_task
from foreword.tasks.view import View, relabelled, split_name, viewed

__all__ = [
    "TASKS", "GenerationLimits", "OwnTask", "Task", "View", "get_task", "own_task", "relabelled", "task_from_yaml"
]

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
    "qqp": qqp(),
    "webnlg_paraphrase": webnlg_paraphrase(),
    "boolq": boolq(),
    "copa": copa(),
    "multirc": multirc(),
    "record": record(),
    "wic": wic(),
    "wsc": wsc(),
    "squad": squad(),
    "xquad_en": xquad_en(),
    **{task.name: task for task in map(mrqa, MRQA_SETS)},
    "xsum": xsum(),
    "xsum_news_to_sports": xsum("xsum_news_to_sports", extrapolation_loader(news_to_sports)),
    "xsum_within_news": xsum("xsum_within_news", extrapolation_loader(within_news)),
    "cnn_dm": cnn_dm(),
    "aeslc": aeslc(),
    "dialogsum": dialogsum(),
    "venues": venues_task(),
    "sentiment": sentiment_task(),
    "headlines": headlines_task(),
}


def get_task(name: str) -> Task:
    """Return the task called `name`, or the one a YAML file describes when `name` ends in .yaml or .yml.

    A view of its training data may stand behind the name, as in `e2e@size=100,draw=3` (see `foreword.tasks.view`).

    Raises:
        DataError: no such task; names the nearest.
        ConfigError: the YAML file is missing or wrong, or the view is.
    """
    name, view = split_name(name)
    if view is not None:
        return viewed(get_task(name), view)
    if Path(name).suffix in (".yaml", ".yml"):
        return task_from_yaml(name)
    if name not in TASKS:
        raise DataError(f"unknown task {name!r}{nearest(name, TASKS)}")
    return TASKS[name]
