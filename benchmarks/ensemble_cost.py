"""What an ensemble of N prompts costs beside N passes of one prompt each, and its memory beside one model's.

    python benchmarks/ensemble_cost.py --backbone foreword-decoder-6m --record benchmarks/records/DATE_ensemble_cost

Two jobs on short inputs: label scoring (two label words, one pass) and generation (a dozen new tokens). The N passes
use the same code with an ensemble of one. Batches are interleaved; a batch's time is the least of its repeats, and the
ratio is of their means; that of CPU time does not hear what else the machine does. On a CPU the memory of each
contender is read in a process of its own.
"""

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
from meters import Clock, machine, peak_bytes, reset_peak

from foreword.backbone import Backbone, load_backbone
from foreword.compose.ensemble import Ensemble
from foreword.prompts.init import initialise
from foreword.prompts.soft_prompt import SoftPrompt, compile_prompt, make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.tasks.task import GenerationLimits

TEXTS = (
    "sentence: a warm and funny film", "sentence: the plot never finds its feet", "sentence: it is worth seeing",
    "sentence: dull from the first scene", "name : Blue Door, food : pasta", "name : The Mill, area : riverside",
    "sentence: an honest , moving story", "sentence: nobody laughed once",
)
LABELS = ("negative", "positive")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="foreword-decoder-6m")
    options = {"dtype": "float32", "device": "cpu", "threads": 1, "members": 5, "length": 10, "repeats": 9}
    for name, default in {**options, "new-tokens": 12}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 2, 4, 8], help="texts in one pass")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--memory-of", choices=("one", "ensemble"), help=argparse.SUPPRESS)
    return parser.parse_args()


def members(args: argparse.Namespace) -> tuple[Backbone, list[SoftPrompt]]:
    backbone = load_backbone(args.backbone, dtype=args.dtype, device=args.device)
    prompts = [make_prompt(PromptSpec(length=args.length), backbone) for _ in range(args.members)]
    for seed, prompt in enumerate(prompts):
        initialise(prompt, backbone, torch.Generator().manual_seed(seed), training_ids=[list(range(9 + seed, 400))])
    return backbone, prompts


def jobs(args: argparse.Namespace) -> dict[str, Callable[[Ensemble, list[str]], object]]:
    """Return what is timed; all rows generate to the limit, so that no early end favours anybody."""
    limits = GenerationLimits(max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens)
    return {
        "label scoring": lambda ensemble, texts: ensemble.scores(texts, [LABELS] * len(texts)),
        "generation": lambda ensemble, texts: ensemble.outputs(texts, limits),
    }


def timed(device: str, work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds on the wall and those of this process's processors."""
    busy = time.process_time()
    with Clock(device) as clock:
        work()
    return clock.seconds, time.process_time() - busy


def compare(args: argparse.Namespace) -> list[dict]:
    """Return a line for each job and number of texts in a pass: seconds a batch, and the ratios."""
    backbone, prompts = members(args)
    groups = {"together": [prompts], "apart": [[prompt] for prompt in prompts]}
    lines = []
    for job, run in jobs(args).items():
        for size in args.texts:
            made = {name: [Ensemble(backbone, x, batch_size=size) for x in parts] for name, parts in groups.items()}
            batches = [list(TEXTS[i : i + size]) for i in range(0, len(TEXTS), size)]
            rounds: dict[tuple[str, int], list[tuple[float, float]]] = {}
            for repeat in range(args.repeats + 1):
                for (number, texts), name in itertools.product(enumerate(batches), groups):
                    found = timed(args.device, lambda: [run(one, texts) for one in made[name]])  # noqa: B023
                    if repeat:  # the first round warms up every shape
                        rounds.setdefault((name, number), []).append(found)
            lines.append(line_of(job, size, rounds))
    return lines


def line_of(job: str, size: int, rounds: dict[tuple[str, int], list[tuple[float, float]]]) -> dict:
    def least(name: str, which: int) -> float:
        return mean(min(pair[which] for pair in pairs) for (mine, _), pairs in rounds.items() if mine == name)

    wall, busy = (least("together", which) / least("apart", which) for which in (0, 1))
    seconds = {f"{name}_sec": least(name, 0) for name in ("together", "apart")}
    return {"job": job, "texts": size, **seconds, "ratio": wall, "cpu_ratio": busy}


def memory(args: argparse.Namespace) -> dict[str, int]:
    """Return the bytes of the weights, and what running one contender adds to them at its peak, prompts included."""
    count = 1 if args.memory_of == "one" else args.members
    backbone, prompts = members(args)
    ensemble = Ensemble(backbone, prompts[:count], batch_size=1)
    before = reset_peak(args.device)
    for run, text in itertools.product(jobs(args).values(), TEXTS):
        run(ensemble, [text])
    working = peak_bytes(args.device) - before
    weights = sum(t.numel() * t.element_size() for t in backbone.model.parameters())
    held = sum(compile_prompt(prompt, backbone).num_bytes for prompt in prompts[:count])
    return {"weights": weights, "prompts": held, "working": working, "total": weights + held + working}


def in_fresh_process(which: str) -> dict[str, int]:
    command = [sys.executable, *sys.argv, "--memory-of", which]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def table(args: argparse.Namespace, lines: list[dict], held: dict[str, dict[str, int]]) -> str:
    count = args.members
    head = f"{'job':14} {'texts':>5} {'one pass of':>12} {count}, ms {count:5} passes, ms  ratio of CPU time"
    form = "{job:14} {texts:5} {together:19.2f} {apart:14.2f} {ratio:6.2f} {cpu_ratio:11.2f}"
    rows = [form.format(**x, together=1e3 * x["together_sec"], apart=1e3 * x["apart_sec"]) for x in lines]
    one, both = (found["total"] / 1e6 for found in held.values())
    sizes = f"memory, weights and peak of a run: one {one:.1f} MB, ensemble {both:.1f} MB, ratio {both / one:.2f}"
    return "\n".join([head, *rows, sizes])


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(memory(args)))
        return
    held = {which: in_fresh_process(which) for which in ("one", "ensemble")}
    lines = compare(args)
    print(text := table(args, lines, held))
    config = {key: value for key, value in vars(args).items() if key not in ("record", "memory_of")}
    found = {"lines": lines, "memory": held, "memory_ratio": held["ensemble"]["total"] / held["one"]["total"]}
    print(line := json.dumps({"config": config, "machine": machine(args.device), **found}))
    if args.record:
        args.record.with_suffix(".txt").write_text(text + "\n")
        args.record.with_suffix(".json").write_text(line + "\n")


if __name__ == "__main__":
    main()
