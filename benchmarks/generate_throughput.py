"""Offline generation with one prefix: Foreword's cache, Transformers' own under the same injection, and PEFT.

    python benchmarks/generate_throughput.py --record benchmarks/records/DATE_generate_throughput

Every contender makes the same number of tokens for the same texts. Rounds are interleaved, and each contender's time is
the least of its rounds: on the wall, and of this process's processors, which does not hear what else the machine does.
The ceiling is what the weights' products alone would take at the machine's best rate for matrix products.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from meters import Clock, machine, matmul_ceiling
from peft import PeftModel

from foreword.artifact import save_prompt
from foreword.backbone import Backbone, load_backbone
from foreword.generate import generate_ids
from foreword.prompts.batch import Row
from foreword.prompts.init import initialise
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.tasks import get_task

Work = Callable[[], list[list[int]]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="foreword-decoder-6m")
    options = {"dtype": "float32", "device": "cpu", "threads": 1, "rows": 32, "length": 10, "repeats": 3}
    for name, default in {**options, "source-tokens": 40, "new-tokens": 40}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--record", type=Path)
    return parser.parse_args()


def subject(args: argparse.Namespace) -> tuple[Backbone, SoftPrompt, list[Row]]:
    """Return the backbone, a prefix, and rows of equal length: PEFT places padded rows differently."""
    backbone = load_backbone(args.backbone, dtype=args.dtype, device=args.device)
    prompt = make_prompt(PromptSpec(length=args.length), backbone)
    initialise(prompt, backbone, torch.Generator().manual_seed(0))
    texts = [record.source for record in get_task("venues").load("train")[: args.rows]]
    cut = [(backbone.tokenizer(text).input_ids * args.source_tokens)[: args.source_tokens] for text in texts]
    return backbone, prompt.to(args.device), [Row(tuple(ids)) for ids in cut]


def contenders(
    args: argparse.Namespace, backbone: Backbone, prompt: SoftPrompt, rows: list[Row], beams: int, folder: Path
) -> dict[str, Work]:
    """Return what is timed. No row stops early: the least and the most new tokens are the same number."""
    limits = {"max_new_tokens": args.new_tokens, "min_new_tokens": args.new_tokens, "num_beams": beams}
    ids = torch.tensor([row.source for row in rows], device=args.device)
    model = PeftModel.from_pretrained(load_backbone(args.backbone, dtype=args.dtype, device=args.device).model, folder)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @torch.no_grad()
    def peft() -> list[list[int]]:
        made = model.generate(**inputs, **limits, do_sample=False, pad_token_id=backbone.tokenizer.pad_token_id)
        return made[:, ids.shape[1] :].tolist()

    def ours(**more: str) -> list[list[int]]:
        return generate_ids(backbone, rows, [prompt] * len(rows), **limits, do_sample=False, **more)

    return {"foreword": ours, "stock cache": lambda: ours(cache_implementation="dynamic"), "peft": peft}


def timed(device: str, work: Work) -> tuple[float, float, list[list[int]]]:
    """Return seconds on the wall, seconds of the processors, and what was made."""
    busy = time.process_time()
    with Clock(device) as clock:
        made = work()
    return clock.seconds, time.process_time() - busy, made


def compare(args: argparse.Namespace) -> list[dict]:
    """Return a line for each number of beams and contender."""
    backbone, prompt, rows = subject(args)
    ceiling, lines = matmul_ceiling(args.dtype, args.device), []
    weights = sum(tensor.numel() for tensor in backbone.model.parameters())
    with tempfile.TemporaryDirectory() as name:
        save_prompt(prompt, Path(name) / "prefix", backbone)
        for beams in args.beams:
            works = contenders(args, backbone, prompt, rows, beams, Path(name) / "prefix")
            rounds = [{key: timed(args.device, work) for key, work in works.items()} for _ in range(args.repeats + 1)]
            reference = rounds[0]["foreword"][2]
            least = 2 * weights * args.rows * (beams * args.new_tokens + args.source_tokens) / ceiling
            for key in works:
                wall, busy = (min(found[key][which] for found in rounds[1:]) for which in (0, 1))
                equal = sum(a == b for a, b in zip(reference, rounds[0][key][2], strict=True))
                rate = {"tokens_per_sec": args.rows * args.new_tokens / wall, "of_ceiling": least / wall}
                lines.append({"beams": beams, "contender": key, "sec": wall, "cpu_sec": busy, "equal": equal, **rate})
    return lines


def table(args: argparse.Namespace, lines: list[dict]) -> str:
    head = f"{'beams':>5} {'contender':12} {'sec':>7} {'CPU sec':>8} {'tokens/s':>9} {'of ceiling':>10} {'equal':>8}"
    form = "{beams:5} {contender:12} {sec:7.2f} {cpu_sec:8.2f} {tokens_per_sec:9.0f} {of_ceiling:10.2f} {equal:5}/"
    return "\n".join([head, *(form.format(**line) + str(args.rows) for line in lines)])


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    lines = compare(args)
    print(text := table(args, lines))
    config = {key: value for key, value in vars(args).items() if key != "record"}
    print(line := json.dumps({"config": config, "machine": machine(args.device), "lines": lines}))
    if args.record:
        args.record.with_suffix(".txt").write_text(text + "\n")
        args.record.with_suffix(".json").write_text(line + "\n")


if __name__ == "__main__":
    main()
