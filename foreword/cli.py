"""The command line: one subcommand a verb. It parses, calls the Python API and prints; what a verb does lives there.

Imports of PyTorch and of everything that needs it stand inside the commands, so that `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from foreword import __version__
from foreword.errors import ConfigError, DataError, ForewordError, nearest

if TYPE_CHECKING:
    from foreword.evaluate.job import Evaluation
    from foreword.train.run import TrainResult

NO_PROMPT = "none"
"""Stands for `no prompt in this row` where directories of prompts are given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: done, and a check found a fault (`doctor`). 2: a fault the user can mend, printed in one line.
    """
    # Threads that wait for work sleep instead of spinning: ten times faster on cores shared with other programs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        arguments = make_parser().parse_args(argv)
        return arguments.run(arguments)
    except ForewordError as error:
        return _complain(str(error))
    except OSError as error:  # a full disk, a missing permission, a directory where a file should be
        return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("foreword: stopped", file=sys.stderr)
        return 130


def _complain(message: str) -> int:
    print(f"foreword: {' '.join(message.split())}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are ConfigErrors, like those of a configuration file."""

    def error(self, message: str) -> NoReturn:
        """Raise what `main` prints.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = "command" if action.dest == "command" else f"--{action.dest}"
            raise ConfigError(f"{name} {value!r} is unknown{nearest(value, map(str, action.choices))}")

    def parse_args(self, *args: Any, **kwargs: Any) -> argparse.Namespace:  # type: ignore[override]
        """Return the parsed arguments.

        Raises:
            ConfigError: an option is unknown; names the nearest, or how to write a dotted field.
        """
        found, left = self.parse_known_args(*args, **kwargs)
        rest = getattr(found, "rest", None)
        if rest is not None:  # argparse takes positional words before the first option only
            getattr(found, rest).extend(word for word in left if not word.startswith("-"))
        unknown = [word for word in left if rest is None or word.startswith("-")]
        if unknown:
            word = unknown[0].partition("=")[0]
            field = word.lstrip("-")
            if word.startswith("--") and "." in field:
                raise ConfigError(f"option {word!r} is unknown; fields of the configuration are set as {field}=VALUE")
            raise ConfigError(f"option {word!r} is unknown{nearest(word, found.options)}")
        return found


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = _Parser(prog="foreword", description="Learn, keep, mix and measure soft prompts for a frozen model.")
    parser.add_argument("--version", action="version", version=f"foreword {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for add in (_add_train, _add_generate, _add_evaluate, _add_doctor, _add_convert, _add_pretrain, _add_demo):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> Callable[..., Any]:
    """Add a subcommand and return its `add_argument`."""
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(run=run, options=[], rest=None)

    def add(*names: str, **settings: Any) -> None:
        command.add_argument(*names, **settings)
        if settings.get("nargs") == "*":
            command.set_defaults(rest=names[0])
        command.set_defaults(options=[*command.get_default("options"), *(n for n in names if n.startswith("--"))])

    return add


def _add_train(commands: Any) -> None:
    add = _command(commands, "train", _train, "Learn a soft prompt (or fine-tune, to compare).")
    add("settings", nargs="*", metavar="RECIPE.yaml | field.path=value",
        help="a recipe file, then fields that differ from it: `prompt.length=5 optim.lr=1e-3`")
    add("--task", help="name of a task or path of its YAML file")
    add("--backbone", help="directory, bundled name or hub id")
    add("--out", metavar="DIR", help="run directory")
    add("--seed", type=int)
    add("--resume", metavar="RUN_DIR", help="go on with a run that stopped, exactly where it was")
    add("--gang", metavar="RECIPE.yaml", help="train every member of the recipe's list `gang` in one pass")
    add("--dry-run", action="store_true", help="resolve the configuration, build everything, take no step")


def _add_generate(commands: Any) -> None:
    add = _command(commands, "generate", _generate, "Generate, each row with its own prompt, in one batch.")
    add("texts", nargs="*", metavar="TEXT")
    add("--backbone", required=True, help="directory, bundled name or hub id")
    add("--prompt", action="append", default=[], metavar="DIR",
        help=f"one for all texts, or one a text in their order; `{NO_PROMPT}` for none")
    add("--input", metavar="FILE.jsonl", help='rows of {"text": ..., "prompt": DIR or null}')
    add("--out", metavar="FILE.jsonl", help="write text, prompt and output of each row there")
    add("--max-new-tokens", type=int, default=64)
    add("--beams", type=int, default=1)
    add("--sample", action="store_true")
    add("--seed", type=int)
    add("--dtype", default="float32")


def _add_evaluate(commands: Any) -> None:
    add = _command(commands, "evaluate", _evaluate, "Score a run or a prompt beside the untouched backbone.")
    add("source", metavar="RUN_OR_PROMPT_DIR")
    add("--task", help="name of a task or path of its YAML file; default: the run's")
    add("--backbone", help="default: the one it was learned on")
    add("--split", default="test")
    add("--limit", type=int, help="score this many records, drawn by --seed")
    add("--no-untouched", action="store_true", help="leave the untouched backbone's row out")
    add("--batch-size", type=int, default=32)
    add("--resamples", type=int, default=1000, help="of the bootstrap intervals; 0 for none")
    add("--seed", type=int, default=0)
    add("--out", metavar="DIR", help="write scores.json and predictions.jsonl there")


def _add_doctor(commands: Any) -> None:
    add = _command(commands, "doctor", _doctor, "Examine a prompt: is every part of it at work?")
    add("source", metavar="PROMPT_DIR")
    add("--backbone", help="default: the one it was learned on")
    add("--text", action="append", default=[], help="a text to examine it with; several may be given")


def _add_convert(commands: Any) -> None:
    add = _command(commands, "convert", _convert, "Turn PEFT's files into ours, or ours into PEFT's alone.")
    add("source", metavar="SRC")
    add("target", metavar="DST")
    add("--to", choices=("peft", "foreword"), default="foreword")
    add("--backbone", help="to put its fingerprint in, and to read PEFT prefixes that do not tell their geometry")


def _add_pretrain(commands: Any) -> None:
    add = _command(commands, "pretrain", _pretrain, "Train a small backbone from corpora.")
    add("recipe", metavar="RECIPE.yaml")
    add("settings", nargs="*", metavar="field.path=value")


def _add_demo(commands: Any) -> None:
    add = _command(commands, "demo", _demo, "Learn three prompts on the bundled backbone and write a report.")
    add("--out", metavar="DIR", default="runs/demo")
    add("--backbone", help="default: the bundled one")
    add("--steps", type=int, help="of the main training; fewer is faster and worse")


def _train(arguments: argparse.Namespace) -> int:
    from foreword.train.job import resume, train
    from foreword.train.rehearse import rehearse, settle

    if arguments.gang:
        return _train_gang(arguments)
    shortcuts = {"task": arguments.task, "backbone.source": arguments.backbone, "run_dir": arguments.out}
    config = settle(arguments.settings, {**shortcuts, "seed": arguments.seed}, arguments.resume)
    if arguments.dry_run:
        print(rehearse(config).summary())
        return 0
    result = resume(arguments.resume, config) if arguments.resume else train(config)
    _print_result(result)
    return 0


def _train_gang(arguments: argparse.Namespace) -> int:
    from foreword.train.gang import load_gang, train_gang

    given = (arguments.settings, arguments.task, arguments.backbone, arguments.out, arguments.seed, arguments.resume)
    if any(value is not None and value != [] for value in given) or arguments.dry_run:
        raise ConfigError("--gang takes its members' fields from the recipe alone; write them there")
    for result in train_gang(load_gang(arguments.gang)):
        _print_result(result)
    return 0


def _print_result(result: "TrainResult") -> None:
    dev = "" if result.best_dev is None else f", dev {result.best_dev:.4f} at step {result.best_step}"
    print(f"{result.steps} steps in {result.seconds:.0f} s, loss {result.final_loss:.4f}{dev}")
    print(f"foreword evaluate {result.run_dir}")


def _generate(arguments: argparse.Namespace) -> int:
    from foreword.artifact import load_prompt
    from foreword.backbone import load_backbone
    from foreword.data.files import write_jsonl
    from foreword.generate import generate

    texts, names = _rows(arguments)
    backbone = load_backbone(arguments.backbone, dtype=arguments.dtype)
    loaded = {name: load_prompt(name, backbone) for name in dict.fromkeys(names) if name is not None}
    outputs = generate(
        backbone, texts, [loaded.get(name) for name in names], max_new_tokens=arguments.max_new_tokens,
        num_beams=arguments.beams, do_sample=arguments.sample, seed=arguments.seed,
    )
    rows = zip(texts, names, outputs, strict=True)
    if arguments.out:
        write_jsonl(arguments.out, [{"text": t, "prompt": name, "output": output} for t, name, output in rows])
    else:
        print("\n".join(outputs))
    return 0


def _rows(arguments: argparse.Namespace) -> tuple[list[str], list[str | None]]:
    """Return the texts of the command line or the input file, and the directory of each one's prompt."""
    if bool(arguments.texts) == bool(arguments.input):
        raise ConfigError("give either texts or --input FILE.jsonl")
    if arguments.input:
        return _input_rows(arguments)
    names = [None if name == NO_PROMPT else name for name in arguments.prompt] or [None]
    if len(names) not in (1, len(arguments.texts)):
        raise ConfigError(
            f"{len(names)} prompts for {len(arguments.texts)} texts; give one for all, or one a text ({NO_PROMPT!r} "
            "for a text without)"
        )
    return arguments.texts, names * len(arguments.texts) if len(names) == 1 else names


def _input_rows(arguments: argparse.Namespace) -> tuple[list[str], list[str | None]]:
    from foreword.data.files import filled, pick, read_rows

    if len(arguments.prompt) > 1:
        raise ConfigError(f"{len(arguments.prompt)} prompts with --input; name each row's prompt in the file")
    default = next(iter(arguments.prompt), None)
    texts, names = [], []
    rows = read_rows(arguments.input, "jsonl")
    if not rows:
        raise DataError(f'{arguments.input!r} holds no rows; write lines like {{"text": "..."}}')
    for number, row in rows:
        where = f"{arguments.input!r} row {number}"
        texts.append(filled(pick(row, "text", where), where, "text"))
        names.append(row.get("prompt", default))
        if names[-1] is not None and not isinstance(names[-1], str):
            raise DataError(f"{where}: prompt = {names[-1]!r} must be a directory or null")
    return texts, [None if name == NO_PROMPT else name for name in names]


def _evaluate(arguments: argparse.Namespace) -> int:
    from foreword.evaluate.job import evaluate

    found = evaluate(
        arguments.source, arguments.task, backbone=arguments.backbone, split=arguments.split, limit=arguments.limit,
        untouched=not arguments.no_untouched, batch_size=arguments.batch_size, resamples=arguments.resamples,
        seed=arguments.seed, tell=_tell,
    )
    print(_score_table(found))
    if arguments.out:
        print(f"written to {found.write(arguments.out)}")
    return 0


def _tell(what: str, done: int, total: int) -> None:
    end = "\n" if done == total else "\r"
    print(f"{what}: {done}/{total} texts", end=end if sys.stderr.isatty() or done == total else "", file=sys.stderr)


def _score_table(found: "Evaluation") -> str:
    """Return the scores as lines: a row a subject, each score with its interval."""
    lines = []
    for name, scores in found.scores.items():
        cells = []
        for metric, value in scores.metrics.items():
            interval = scores.intervals.get(metric)
            cells.append(f"{metric} {value:.4f}" + (f" [{interval.low:.4f}, {interval.high:.4f}]" if interval else ""))
        if scores.illegal is not None:
            cells.append(f"illegal {scores.illegal:.4f}")
        lines.append(f"{name}: " + "  ".join(cells))
    scores = found.scores[found.subject]
    lines += [f"left out: {metric}: {reason}" for metric, reason in scores.skipped.items()]
    same = "unchanged" if found.forgetting.unchanged else f"{found.forgetting.before:.6f} before"
    lines.append(f"loss on unrelated text without the prompt: {found.forgetting.after:.6f} ({same})")
    return "\n".join([f"{scores.task}, {scores.split}, {scores.n} records", *lines])


def _doctor(arguments: argparse.Namespace) -> int:
    from foreword.doctor import examine
    from foreword.evaluate.subject import load_subjects

    subject = load_subjects(arguments.source, arguments.backbone)[1]
    if subject.prompt is None:
        raise ConfigError(f"{arguments.source!r} is a fine-tuned model; doctor examines soft prompts")
    findings = examine(subject.prompt, subject.backbone, texts=arguments.text or None)
    print("\n".join(findings.lines()))
    return 0 if findings.ok else 1


def _convert(arguments: argparse.Namespace) -> int:
    from foreword.artifact import convert
    from foreword.backbone import load_backbone

    backbone = load_backbone(arguments.backbone) if arguments.backbone else None
    print(convert(arguments.source, arguments.target, arguments.to, backbone))
    return 0


def _pretrain(arguments: argparse.Namespace) -> int:
    from foreword.pretrain.job import pretrain

    print(pretrain(arguments.recipe, arguments.settings))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from foreword.demo import demo

    report = demo(Path(arguments.out), backbone=arguments.backbone, steps=arguments.steps, say=print)
    print(f"report: {report}")
    return 0
