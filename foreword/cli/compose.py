"""`foreword ensemble`, `concatenate`, `average` and `inspect`."""

import argparse
from typing import Any

from foreword.cli.command import add_command, refuse_beside
from foreword.errors import ConfigError

ENSEMBLE_RULES = ("majority", "mean", "borda", "runoff")


def add_ensemble(commands: Any) -> None:
    """Add `foreword ensemble`."""
    add = add_command(commands, "ensemble", _ensemble, "Let several prompts of one task answer in one pass, and merge.")
    add("sources", nargs="*", metavar="RUN_OR_PROMPT_DIR")
    add("--backbone", help="default: the one that the first was learned on")
    add("--text", action="append", default=[], help="answer this text instead of scoring a task; several may be given")
    add("--rule", action="append", choices=ENSEMBLE_RULES, default=[],
        help="how answers are merged; several may be given to be scored (default: majority, mean and borda)")
    add("--choose", action="store_true", help="choose among the task's labels by probability, without generating")
    add("--task", help="name of a task or path of its YAML file; default: the first run's")
    add("--split", default="test")
    add("--dev-split", default="dev", help="what the best member is chosen on")
    add("--limit", type=int, help="score this many records, drawn by --seed")
    add("--dev-limit", type=int)
    add("--batch-size", type=int, default=8, help="texts in one pass; its rows are as many times the members")
    add("--resamples", type=int, default=1000, help="of the bootstrap intervals")
    add("--max-new-tokens", type=int, default=64, help="for --text")
    add("--seed", type=int, default=0)
    add("--out", metavar="DIR", help="write ensemble.json and answers.jsonl there")


def add_concatenate(commands: Any) -> None:
    """Add `foreword concatenate`."""
    add = add_command(commands, "concatenate", _concatenate, "Save one prompt that stands for several in order.")
    _combine_options(add)


def add_average(commands: Any) -> None:
    """Add `foreword average`."""
    add = add_command(commands, "average", _average, "Save the mean of several prompts of one task in weight space.")
    _combine_options(add)
    add("--weight", action="append", type=float, default=[], help="one a prompt; left out: all alike")


def add_inspect(commands: Any) -> None:
    """Add `foreword inspect`."""
    add = add_command(commands, "inspect", _inspect, "Tell what is inside a prompt: words, attention, effect, size.")
    add("source", metavar="RUN_OR_PROMPT_DIR")
    add("--backbone", help="default: the one it was learned on")
    add("--task", help="whose texts it is watched on; default: the run's, else bundled texts")
    add("--split", default="dev")
    add("--limit", type=int, default=24, help="texts, drawn by --seed")
    add("--word", action="append", default=[], help="what virtual token 0, 1, ... was first; default: as initialised")
    add("--seed", type=int, default=0)
    add("--html", metavar="FILE.html", help="write a page of its own there")
    add("--json", metavar="FILE.json", help="write every figure there")
    add("--svg", metavar="FILE.svg", help="write the heat map of attention by layer and virtual token there")


def _combine_options(add: Any) -> None:
    add("prompts", nargs="*", metavar="RUN_OR_PROMPT_DIR")
    add("--backbone", help="default: the one that the first was learned on")
    add("--out", metavar="DIR", required=True)


def _ensemble(arguments: argparse.Namespace) -> int:
    from foreword.compose.study import STUDY_RULES, load_members, study
    from foreword.tasks import GenerationLimits

    if arguments.text:
        given = {"--task": arguments.task, "--choose": arguments.choose, "--out": arguments.out}
        refuse_beside("--text", {**given, "--limit": arguments.limit, "--dev-limit": arguments.dev_limit})
        ensemble, _ = load_members(arguments.sources, arguments.backbone, arguments.batch_size)
        limits = GenerationLimits(max_new_tokens=arguments.max_new_tokens)
        for rule in arguments.rule or ["majority"]:
            print("\n".join(ensemble.answer(arguments.text, limits, rule)))
        return 0
    found = study(
        arguments.sources, arguments.task, backbone=arguments.backbone, rules=arguments.rule or STUDY_RULES,
        choose=arguments.choose, split=arguments.split, dev_split=arguments.dev_split, limit=arguments.limit,
        dev_limit=arguments.dev_limit, batch_size=arguments.batch_size, resamples=arguments.resamples,
        seed=arguments.seed,
    )
    print("\n".join(found.lines()))
    if arguments.out:
        print(f"written to {found.write(arguments.out)}")
    return 0


def _concatenate(arguments: argparse.Namespace) -> int:
    from foreword.compose.combine import concatenate

    return _combined(arguments, lambda prompts, backbone: concatenate(prompts, backbone))


def _average(arguments: argparse.Namespace) -> int:
    from foreword.compose.combine import average

    return _combined(arguments, lambda prompts, _: average(prompts, arguments.weight or None))


def _combined(arguments: argparse.Namespace, make: Any) -> int:
    """Load the prompts, combine them, and save what comes out."""
    from foreword.artifact import save_prompt
    from foreword.evaluate.subject import load_subjects

    if not arguments.prompts:
        raise ConfigError("no prompt is given; name at least one directory")
    backbone, prompts = arguments.backbone, []
    for source in arguments.prompts:
        subject = load_subjects(source, backbone)[1]
        if subject.prompt is None:
            raise ConfigError(f"{source!r} is a {subject.name}; only soft prompts are combined")
        backbone = subject.backbone
        prompts.append(subject.prompt)
    made = make(prompts, backbone)
    print(f"{made.spec.kind} of {made.length}: {save_prompt(made, arguments.out, backbone=backbone)}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from foreword.inspect.job import inspect_prompt

    found = inspect_prompt(
        arguments.source, arguments.task, backbone=arguments.backbone, split=arguments.split, limit=arguments.limit,
        words=arguments.word or None, seed=arguments.seed,
    )
    print("\n".join(found.lines()))
    if arguments.json:
        print(f"written to {found.write(arguments.json)}")
    if arguments.html:
        from foreword.experiments.inspect_page import inspect_page
        from foreword.experiments.report import write_report

        print(f"page: {write_report(arguments.html, inspect_page(found))}")
    if arguments.svg:
        from foreword.experiments.heat_map import write_heat_map
        from foreword.experiments.inspect_page import attention_by_token

        if found.attention is None or not found.attention.weights:
            raise ConfigError(f"--svg: {found.missing.get('attention', 'no attention sees the prompt')}; leave it out")
        stack = found.attention.stacks[0]
        print(f"heat map of the {stack}: {write_heat_map(arguments.svg, attention_by_token(found.attention, stack))}")
    return 0
