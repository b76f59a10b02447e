"""Draws the README's picture from a record of `recipe_table.py`: one bar a recipe, one dot a seed.

python benchmarks/results_picture.py benchmarks/records/2026-11-27_e2e_table.json docs/results/e2e.svg
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from markupsafe import escape

from foreword.data.files import write_atomic

WIDTH, BAR, GAP, LEFT, RIGHT, TOP = 740, 26, 14, 170, 70, 44
NAMES = {
    "untouched": "untouched backbone",
    "e2e_prompt20": "prompt of 20",
    "e2e_prefix5": "prefix of 5",
    "e2e_prefix10": "prefix of 10",
    "e2e_prefix150": "prefix of 150",
    "e2e_fine_tune": "full fine-tuning",
}


def picture(results: dict[str, list[dict[str, float]]], metric: str, title: str) -> str:
    """Return an SVG that reads on light and dark paper: bars are means, dots are seeds, the scale starts at zero."""
    values = {name: [run[metric] for run in runs] for name, runs in results.items() if runs}
    ordered = sorted(values, key=lambda name: mean(values[name]))
    scale = (WIDTH - LEFT - RIGHT) / max(max(found) for found in values.values())
    height = TOP + len(ordered) * (BAR + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        'font-family="sans-serif" font-size="14">',
        "<style>text{fill:#1f2328}.dot{fill:#1f2328}.bar{fill:#7aa7d9}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dot{fill:#e6edf3}.bar{fill:#3d6ea5}}</style>",
        f'<text x="8" y="22" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    for place, name in enumerate(ordered):
        top = TOP + place * (BAR + GAP)
        length = mean(values[name]) * scale
        label, number = escape(NAMES.get(name, name)), f"{mean(values[name]):.3f}"
        furthest = LEFT + max(values[name]) * scale
        lines.append(f'<text x="{LEFT - 10}" y="{top + 18}" text-anchor="end">{label}</text>')
        lines.append(f'<rect class="bar" x="{LEFT}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2"/>')
        if len(values[name]) > 1:
            lines += [
                f'<circle class="dot" cx="{LEFT + value * scale:.1f}" cy="{top + BAR / 2}" r="3"/>'
                for value in values[name]
            ]
        lines.append(f'<text x="{furthest + 10:.1f}" y="{top + 18}">{number}</text>')
    return "\n".join([*lines, "</svg>\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--metric", default="BLEU")
    parser.add_argument("--title", default="E2E test set, BLEU: one bar a method (mean), one dot a seed")
    options = parser.parse_args()
    results = json.loads(options.record.read_text(encoding="utf-8"))
    write_atomic(options.out, picture(results, options.metric, options.title))


if __name__ == "__main__":
    main()
