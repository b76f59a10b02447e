"""Does the search find a trigger that is known? HotFlip against random search at equally many model evaluations.

    python benchmarks/autoprompt_planted.py --backbone foreword-decoder-6m --record benchmarks/records/DATE_autoprompt

The targets are sampled from the backbone reading a secret trigger, so no trigger does better in expectation than the
secret itself. Both searches start from the same words, see the same rows and spend the same number of evaluations; what
they found is measured on held-out rows with targets sampled apart. `rank` is the place of the secret's first word among
words tried in its slot with the rest of the secret in place: 1 means that the answer is where it should be.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from statistics import mean

import torch
from meters import machine

from foreword.backbone import load_backbone
from foreword.baselines.autoprompt.planted import draw_secret, plant, recover
from foreword.baselines.autoprompt.reader import Reader, TriggerExample
from foreword.baselines.autoprompt.search import Search, measure
from foreword.baselines.autoprompt.spec import AutoPromptSpec
from foreword.baselines.autoprompt.template import Template, Writer
from foreword.baselines.autoprompt.words import allowed_tokens, first_trigger
from foreword.data.examples import get_format
from foreword.tasks import get_task


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 3], help="words of the secret")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--rows", type=int, default=16, help="rows of one gradient, and of one scoring")
    parser.add_argument("--train-rows", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=128)
    parser.add_argument("--source-words", type=int, default=8, help="words of each source")
    parser.add_argument("--new-len", type=int, default=3, help="tokens of each target")
    parser.add_argument("--ranked", type=int, default=200, help="words that the secret is ranked among")
    parser.add_argument("--record", type=Path)
    return parser.parse_args()


def sources(args: argparse.Namespace) -> list[str]:
    records = get_task("sentiment").load("train", args.train_rows + args.held_out)
    return [" ".join(record.source.split()[: args.source_words]) for record in records]


def rank(reader: Reader, rows: list[TriggerExample], secret: tuple[int, ...], words: list[int]) -> int:
    """Return the secret's place among other first words, 1 for the lowest loss."""
    own = measure(reader, rows, secret, 64).loss
    return 1 + sum(measure(reader, rows, (word, *secret[1:]), 64).loss < own for word in words if word != secret[0])


def trial(args: argparse.Namespace, reader: Reader, slots: int, seed: int) -> list[dict]:
    """Plant one secret and return what each strategy recovers of it."""
    tokenizer = reader.backbone.tokenizer
    template = Template("{source}" + " [T]" * slots, reader.kind)
    writer = Writer(tokenizer, template, get_format("bare"))
    rows = [TriggerExample(writer.write(text), (0,)) for text in sources(args)]
    settings = {"candidates": args.candidates, "accumulation": 1, "rows": args.rows, "score": "loss"}
    specs = {name: AutoPromptSpec(strategy=name, **settings) for name in ("hotflip", "random")}
    allowed = allowed_tokens(tokenizer, len(reader.embeddings()), specs["hotflip"])
    generator = torch.Generator().manual_seed(seed)
    secret = draw_secret(allowed, slots, generator)
    planted = plant(reader, rows, secret, args.new_len, generator)
    train, held_out = planted[: args.train_rows], planted[args.train_rows :]
    first = first_trigger(tokenizer, specs["hotflip"], slots, allowed)
    others = list(draw_secret(allowed, args.ranked, generator)) if args.ranked else []
    place = rank(reader, held_out, secret, others)
    lines = []
    for name, spec in specs.items():
        found, spent, started = first, 0, time.perf_counter()
        search = Search(reader, train, spec, allowed, seed)
        for iteration in range(1, args.iterations + 1):
            flip = search.step(found, iteration)
            found, spent = flip.trigger, spent + flip.evaluations
        seconds = time.perf_counter() - started
        got = recover(reader, held_out, secret, first, found)
        words = {"found_words": tokenizer.decode(found), "secret_words": tokenizer.decode(secret)}
        figures = {"evaluations": spent, "seconds": round(seconds, 2), "secret_rank": place}
        told = {"strategy": name, "slots": slots, "seed": seed, "share": got.share}
        lines.append({**told, **asdict(got), **figures, **words})
        print(json.dumps(lines[-1], ensure_ascii=False), flush=True)
    return lines


def table(lines: list[dict], slots: list[int]) -> str:
    """Return the means over seeds; the loss recovered is the ratio of the summed losses, not a mean of ratios."""
    rows = ["slots strategy  loss recovered  in place  anywhere  evaluations        s"]
    for count in slots:
        for name in ("hotflip", "random"):
            mine = [one for one in lines if one["slots"] == count and one["strategy"] == name]
            keys = ("first", "secret", "found", "in_place", "anywhere", "evaluations", "seconds")
            first, secret, found, place, any_, spent, seconds = (mean(one[key] for one in mine) for key in keys)
            share = (first - found) / (first - secret)
            rows.append(f"{count:5} {name:8} {share:15.3f} {place:9.3f} {any_:9.3f} {spent:12,.0f} {seconds:8.1f}")
    return "\n".join(rows)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    reader = Reader(load_backbone(args.backbone, device=args.device))
    lines = [one for slots in args.slots for seed in range(args.seeds) for one in trial(args, reader, slots, seed)]
    shown = table(lines, args.slots)
    print(shown)
    config = {name: str(value) for name, value in vars(args).items()}
    text = json.dumps({"config": config, "machine": machine(args.device), "trials": lines}, ensure_ascii=False)
    print(text)
    if args.record:
        args.record.with_suffix(".txt").write_text(shown + "\n", encoding="utf-8")
        args.record.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
