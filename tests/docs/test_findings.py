"""docs/FINDINGS.md: every claim of the survey has its line, each line a verdict, and what it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "FINDINGS.md").read_text(encoding="utf-8")
CLAIMS = {"A": 5, "B": 12, "C": 5, "D": 5, "E": 10, "F": 4, "G": 2, "H": 1}
ROWS = re.findall(r"^\| ((?:[A-H]\d+(?:, )?)+) \| (.+) \|$", PAGE, flags=re.M)


def test_every_claim_has_one_line():
    named = [claim for names, _ in ROWS for claim in names.split(", ")]
    assert sorted(named) == sorted(f"{letter}{n}" for letter, count in CLAIMS.items() for n in range(1, count + 1))


def test_every_line_has_a_verdict_and_four_cells():
    for names, row in ROWS:
        cells = [cell.strip() for cell in row.split(" | ")]
        assert len(cells) == 4, names
        assert cells[0] and cells[2], names


def test_recipes_records_and_tests_that_are_named_exist():
    for path in re.findall(r"(?:recipes|benchmarks|tests)/[\w/.-]+\.(?:yaml|py)", PAGE):
        assert (ROOT / path).is_file(), path
    for record in re.findall(r"`(\d{4}-\d\d-\d\d_\w+)`", PAGE):
        assert (ROOT / "benchmarks" / "records" / f"{record}.json").is_file(), record
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).is_file(), link
