"""`foreword generate`, `evaluate`, `doctor` and `convert`."""

import argparse
import sys
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from foreword.cli.command import add_command
from foreword.errors import ConfigError, DataError

if TYPE_CHECKING:
    from foreword.evaluate.job import Evaluation

NO_PROMPT = "none"
"""Stands for `no prompt in this row` where directories of prompts are given."""


def add_generate(commands: Any) -> None:
    """Add `foreword generate`."""
    add = add_command(commands, "generate", _generate, "Generate, each row with its own prompt, in one batch.")
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


def add_evaluate(commands: Any) -> None:
    """Add `foreword evaluate`."""
    add = add_command(commands, "evaluate", _evaluate, "Score a run or a prompt beside the untouched backbone.")
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


def add_doctor(commands: Any) -> None:
    """Add `foreword doctor`."""
    add = add_command(commands, "doctor", _doctor, "Examine a prompt: is every part of it at work?")
    add("source", metavar="PROMPT_DIR")
    add("--backbone", help="default: the one it was learned on")
    add("--text", action="append", default=[], help="a text to examine it with; several may be given")


def add_convert(commands: Any) -> None:
    """Add `foreword convert`."""
    add = add_command(commands, "convert", _convert, "Turn PEFT's files into ours, or ours into PEFT's alone.")
    add("source", metavar="SRC")
    add("target", metavar="DST")
    add("--to", choices=("peft", "foreword"), default="foreword")
    add("--backbone", help="to put its fingerprint in, and to read PEFT prefixes that do not tell their geometry")


def _generate(arguments: argparse.Namespace) -> int:
    from foreword.artifact import load_prompt
    from foreword.backbone import load_backbone
    from foreword.data.files import write_jsonl
    from foreword.generate import generate

    texts, names = _rows(arguments)
    backbone = load_backbone(arguments.backbone, dtype=arguments.dtype)
    wanted = [name for name in dict.fromkeys(names) if name is not None]
    loaded = {name: _load_words(name, backbone) or load_prompt(name, backbone) for name in wanted}
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


def _load_words(name: str, backbone: Any) -> Any:
    """Return the trigger words in a directory, None where it holds none."""
    from foreword.baselines.autoprompt.trigger import METHOD, load_trigger
    from foreword.baselines.saved import is_baseline, read_baseline

    saved = read_baseline(name) if is_baseline(name) else None
    return load_trigger(saved, backbone) if saved is not None and saved.method == METHOD else None


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
        if mistyped := [key for key in row if key != "prompt" and get_close_matches(key, ["prompt"], cutoff=0.82)]:
            raise DataError(f"{where} has field {mistyped[0]!r}; did you mean 'prompt'?")
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
        raise ConfigError(f"{arguments.source!r} holds no soft prompt, which doctor examines; give one that does")
    findings = examine(subject.prompt, subject.backbone, texts=arguments.text or None)
    print("\n".join(findings.lines()))
    return 0 if findings.ok else 1


def _convert(arguments: argparse.Namespace) -> int:
    from foreword.artifact import convert
    from foreword.backbone import load_backbone

    backbone = load_backbone(arguments.backbone) if arguments.backbone else None
    print(convert(arguments.source, arguments.target, arguments.to, backbone))
    return 0
