"""`foreword grid` and `check`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from foreword.cli.command import add_command


def add_grid(commands: Any) -> None:
    """Add `foreword grid`."""
    add = add_command(commands, "grid", _grid, "Run a grid: skip what is done, run the rest, write its page.")
    add("recipe", metavar="GRID.yaml")
    add("settings", nargs="*", metavar="field.path=value")
    add("--out", metavar="DIR", help="of the page and its files; default: runs/grids/NAME")
    add("--workers", type=int, default=0, help="local worker processes; default: run everything in this process")
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster: its address, `auto`, or `local` for this machine")
    add("--retry", action="store_true", help="try again what failed earlier")
    add("--list", action="store_true", help="show every run and its state; run nothing")
    add("--report-only", action="store_true", help="write the page of what is there; run nothing")


def add_try(commands: Any) -> None:
    """Add `foreword try`."""
    add = add_command(commands, "try", _try, "A task of one's own: check its data, learn a prompt, score it, one page.")
    add("task", metavar="TASK", help="name of a task or path of its YAML file")
    add("settings", nargs="*", metavar="field.path=value", help="of the run: `steps=300 prompt.length=20`")
    add("--backbone", help="default: the bundled one")
    add("--out", metavar="DIR", help="of the page; default: runs/try/NAME")


def add_check(commands: Any) -> None:
    """Add `foreword check`."""
    add = add_command(commands, "check", _check, "Check a task's data before training: leaks, duplicates, lengths.")
    add("task", metavar="TASK", help="name of a task or path of its YAML file")
    add("--backbone", help="count its tokens, and what will be cut; default: count words")
    add("--split", action="append", default=[], help="only these splits; may be given several times")
    add("--out", metavar="FILE.html", help="write a page too")


def _grid(arguments: argparse.Namespace) -> int:
    from foreword.experiments.grid.drive import run_grid
    from foreword.experiments.grid.page import write_page
    from foreword.experiments.grid.protocols import load_grid

    grid = load_grid(arguments.recipe, arguments.settings)
    if arguments.list:
        return _list(grid, arguments.retry)
    ran = run_grid(
        grid, workers=arguments.workers, ray=arguments.ray, retry=arguments.retry, only_read=arguments.report_only
    )
    words = ["foreword", "grid", arguments.recipe, *arguments.settings]
    words += ["--workers", str(arguments.workers)] if arguments.workers else []
    words += ["--ray", arguments.ray] if arguments.ray is not None else []
    print(f"report: {write_page(ran, arguments.out or Path('runs/grids') / grid.name, words)}")
    return _tell_failures(ran)


def _tell_failures(ran: Any) -> int:
    """Print what failed, and return the exit code."""
    for row in ran.failed:
        print(f"failed: {row.title} ({row.piece.address}): {row.detail}", file=sys.stderr)
    return 1 if ran.failed else 0


def _try(arguments: argparse.Namespace) -> int:
    from foreword.experiments.grid.drive import run_grid
    from foreword.experiments.grid.page import write_page
    from foreword.experiments.grid.protocols import trial_of_task

    grid = trial_of_task(arguments.task, arguments.backbone, arguments.settings)
    faulty = _tell_faults(arguments.task)
    ran = run_grid(grid)
    words = ["foreword", "try", arguments.task, *arguments.settings]
    words += ["--backbone", arguments.backbone] if arguments.backbone else []
    print(f"report: {write_page(ran, arguments.out or Path('runs/try') / grid.name, words)}")
    return max(_tell_failures(ran), int(faulty))


def _tell_faults(name: str) -> bool:
    """Print what is a fault in a task's data, before anything is trained on it, and return whether something is."""
    from foreword.experiments.data_page import check_task
    from foreword.tasks import get_task

    faults = [(check, detail) for status, check, detail in check_task(get_task(name)).findings() if status == "fail"]
    for check, detail in faults:
        print(f"fail  {check}: {detail}", file=sys.stderr)
    return bool(faults)


def _list(grid: Any, retry: bool) -> int:
    from foreword.experiments.grid.drive import overview
    from foreword.experiments.grid.state import counts

    rows, complete = overview(grid, retry)
    for row in rows:
        print(f"{row.state:8} {row.piece.address}  {row.title}{f': {row.detail}' if row.detail else ''}")
    print(", ".join(f"{count} {state}" for state, count in counts(rows).items()))
    if not complete:
        print("the runs that count wait for the search: its trials decide their settings")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from foreword.experiments.data_page import check_task, data_blocks, data_lines
    from foreword.tasks import get_task

    task = get_task(arguments.task)
    tokenizer = form = None
    if arguments.backbone:
        from foreword.backbone import load_tokenizer
        from foreword.data.examples import get_format

        tokenizer, two_parts = load_tokenizer(arguments.backbone)
        form = get_format(None, two_parts)
    found = check_task(task, arguments.split, tokenizer, form)
    print("\n".join(data_lines(task.name, found)))
    if arguments.out:
        from foreword.experiments.report import Report, write_report

        summary = f"What was found in the data of {task.name} before anything was trained. Licence: {task.licence}"
        report = Report(f"Data of {task.name}", summary, data_blocks(task.name, found))
        print(f"page: {write_report(arguments.out, report)}")
    return 1 if any(status == "fail" for status, _, _ in found.findings()) else 0
