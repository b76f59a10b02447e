"""Held-out bits per byte of pretraining runs by source, with the compute spent, as a table, a record and a picture.

    python benchmarks/pretraining_table.py runs/pretrain/foreword-decoder-* \
        --record benchmarks/records/DATE_pretraining --picture docs/results/pretraining.svg --title Decoders
    python benchmarks/pretraining_table.py runs/pretrain/foreword-t5-20m-lm10 --kept OLD_RECORD.json foreword-t5-6m-lm10

Compute is 6 × parameters (embeddings included, for they are the output matrix) × tokens; attention's own products are
left out, and so is what a run went on from. In the picture: size against bits per byte, both axes logarithmic, with the
least-squares line.
"""

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from markupsafe import escape
from transformers import AutoModelForSeq2SeqLM

from foreword.data.files import write_atomic
from foreword.pretrain.corpus import NATURAL_WEIGHTS
from foreword.pretrain.measure import Ruler
from foreword.pretrain.pack import open_stream
from foreword.pretrain.tokenizer import load_tokenizer

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 70, 210, 44, 50


def read_run(folder: Path) -> dict[str, Any]:
    """Return the figures of one finished run directory."""
    facts = json.loads((folder / "backbone" / "pretraining.json").read_text(encoding="utf-8"))
    timing = json.loads((folder / "timing.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return {
        "parameters": facts["parameters"],
        "steps": facts["steps"],
        "tokens": facts["tokens"],
        "tokens_before": facts["before"]["tokens"] if facts["before"] else 0,  # of the run that this one went on from
        "flop": 6 * facts["parameters"] * facts["tokens"],
        "sec": timing["sec"],
        "device": facts["device"],
        "heldout": {name: round(bits, 4) for name, bits in sorted(facts["heldout"].items())},
        "natural_mean": round(natural_mean(facts["heldout"]), 4),
        "copy": {name: round(value, 4) for name, value in facts["copy"].items()},
    }


def natural_mean(heldout: dict[str, float]) -> float:
    """Return the mean of the bits of the natural sources."""
    return mean(bits for source, bits in heldout.items() if source in NATURAL_WEIGHTS)


def kept_runs(record: str, *names: str) -> dict[str, dict[str, Any]]:
    """Return the figures of some runs of an earlier record, whose directories need not be there any more."""
    found = json.loads(Path(record).read_text(encoding="utf-8"))
    return {name: found[name] for name in names}


def table(runs: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table: a row a source, a column a run."""
    names = sorted(runs, key=lambda name: runs[name]["parameters"])  # runs of a size stay as they were given
    rows = [
        ["parameters", *(f"{runs[n]['parameters']:,}" for n in names)],
        ["tokens", *(_tokens(runs[n]) for n in names)],
        ["compute, FLOP", *(f"{runs[n]['flop']:.1e}" for n in names)],
    ]
    sources = sorted(set.intersection(*(set(runs[n]["heldout"]) for n in names)))
    rows += [[source, *(f"{runs[n]['heldout'][source]:.3f}" for n in names)] for source in sources]
    rows.append(["mean of the natural sources", *(f"{runs[n]['natural_mean']:.3f}" for n in names)])
    return markdown(names, rows)


def markdown(names: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table with a column a run."""
    head = ["", *(name.removeprefix("foreword-") for name in names)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _tokens(run: dict[str, Any]) -> str:
    """Return `25 M`, or `252 + 25 M` for a run that went on from another."""
    before = f"{run['tokens_before'] / 1e6:.0f} + " if run["tokens_before"] else ""
    return f"{before}{run['tokens'] / 1e6:.0f} M"


def picture(runs: dict[str, dict[str, Any]], title: str) -> str:
    """Return an SVG that reads on light and dark paper."""
    ordered = sorted(runs.values(), key=lambda run: run["parameters"])
    sizes = np.log10([run["parameters"] for run in ordered])
    series = {
        "Wikipedia": [run["heldout"]["wikipedia_en"] for run in ordered],
        "mean of natural": [run["natural_mean"] for run in ordered],
    }
    logs = np.log10(np.array(list(series.values())))
    low, high = logs.min() - 0.01, logs.max() + 0.01

    def x(size: float) -> float:
        return LEFT + (size - sizes[0]) / (sizes[-1] - sizes[0]) * (WIDTH - LEFT - RIGHT)

    def y(bits: float) -> float:
        return TOP + (high - bits) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def words(across: float, down: float, text: str, more: str = "") -> str:
        return f'<text x="{across:.1f}" y="{down:.1f}" {more}>{escape(text)}</text>'

    def line(start: tuple[float, float], end: tuple[float, float], more: str) -> str:
        return f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" {more}/>'

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"',
        'font-family="sans-serif" font-size="13">',
        "<style>text{fill:#1f2328}.a{fill:#3d6ea5;stroke:#3d6ea5}.b{fill:#b5651d;stroke:#b5651d}.g{stroke:#8c959f}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.a{fill:#7aa7d9;stroke:#7aa7d9}"
        ".b{fill:#e0a070;stroke:#e0a070}}text{stroke:none}</style>",
        words(8, 22, f"{title}: parameters against held-out bits per byte", 'font-size="15" font-weight="600"'),
    ]
    middle, faint = 'text-anchor="middle"', 'opacity=".7"'
    for bits in np.arange(1.0, 2.5, 0.1):
        if low <= np.log10(bits) <= high:
            height = y(np.log10(bits))
            lines.append(line((LEFT, height), (WIDTH - RIGHT, height), 'class="g" opacity=".3"'))
            lines.append(words(LEFT - 8, height + 4, f"{bits:.1f}", 'text-anchor="end"'))
    for size, run in zip(sizes, ordered, strict=True):
        lines.append(words(x(size), HEIGHT - BOTTOM + 20, f"{run['parameters'] / 1e6:.1f} M", middle))
        lines.append(words(x(size), HEIGHT - BOTTOM + 38, f"{_tokens(run)} tokens", f"{middle} {faint}"))
    for kind, (name, values) in zip("ab", series.items(), strict=True):
        found = np.log10(values)
        slope, offset = np.polyfit(sizes, found, 1)
        start, end = ((x(size), y(slope * size + offset)) for size in (sizes[0], sizes[-1]))
        lines.append(line(start, end, f'class="{kind}" stroke-dasharray="5 4" {faint}'))
        for size, value in zip(sizes, found, strict=True):
            lines.append(f'<circle class="{kind}" cx="{x(size):.1f}" cy="{y(value):.1f}" r="4"/>')
        lines.append(words(WIDTH - RIGHT + 12, y(found[-1]) + 4, f"{name}, slope {slope:.3f}"))
    return "\n".join([*lines, "</svg>\n"])


def span_table(folders: list[Path], data: Path, tokens: int = 32768) -> str:
    """Return a Markdown table of bits per byte of the text that span corruption takes out, a column a T5."""
    heldout = {path.stem: open_stream(path) for path in sorted((data / "heldout").glob("*.bin"))}
    ruler = Ruler(load_tokenizer(data / "tokenizer"), heldout, context=512)
    columns = []
    for folder in folders:
        model = AutoModelForSeq2SeqLM.from_pretrained(str(folder / "backbone"), dtype=torch.float32).eval()
        with torch.no_grad():
            columns.append({n: ruler.span_bits_per_byte(model, stream, tokens) for n, stream in heldout.items()})
    rows = [[name, *(f"{bits[name]:.3f}" for bits in columns)] for name in heldout]
    rows.append(["mean of the natural sources", *(f"{natural_mean(bits):.3f}" for bits in columns)])
    return markdown([folder.name for folder in folders], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories of `foreword pretrain`")
    parser.add_argument("--kept", nargs="+", metavar=("RECORD", "RUN"), help="which runs of an earlier record to add")
    parser.add_argument("--spans", type=Path, metavar="DATA", help="measure T5s by span corruption too, on these data")
    parser.add_argument("--record", type=Path, help="write FILE.json and FILE.txt")
    parser.add_argument("--picture", type=Path, help="write an SVG of the runs")
    parser.add_argument("--title", default="Backbones", help="whose picture it is")
    args = parser.parse_args()
    runs = kept_runs(*args.kept) if args.kept else {}
    runs |= {folder.name: read_run(folder) for folder in args.runs}
    print(text := table(runs))
    if args.spans:
        text += "\n\nBy span corruption:\n\n" + (more := span_table(args.runs, args.spans))
        print(more)
    if args.record:
        write_atomic(args.record.with_suffix(".json"), json.dumps(runs, indent=1) + "\n")
        write_atomic(args.record.with_suffix(".txt"), text + "\n")
    if args.picture:
        write_atomic(args.picture, picture(runs, args.title))


if __name__ == "__main__":
    main()
