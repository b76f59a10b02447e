"""The HTML report: escaped, self-contained, deterministic, written whole or not at all."""

import math
import os
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from foreword.errors import DataError
from foreword.experiments import report as report_module
from foreword.experiments.report import (
    Estimate,
    Examples,
    Facts,
    Findings,
    Highlights,
    Plot,
    Prose,
    Report,
    Section,
    Table,
    render,
    write_report,
)

NASTY = "<script>alert('x')</script> & \"quotes\" 'single' </style>"
VOID = {"meta", "br", "img", "link", "hr", "input"}


def everything(text="plain"):
    plot = Plot(
        {text: [(1, 2.0), (2, 1.0), (3, math.nan), (4, 0.5)], "other": [(1, 3.0)]},
        f"x {text}",
        f"y {text}",
        f"caption {text}",
        bands={text: [(1, 1.5, 2.5), (2, 0.5, 1.5)]},
        faint=("other",),
    )
    table = Table([text, "score"], [[text, Estimate(1.25, 1, 2)], ["b", None]], text, best={"score": "max"})
    blocks = [
        Highlights([("4 → 46", text), ("9", "rows", text)]),
        Prose(f"First {text}.\n\nSecond `{text}`."),
        table,
        Examples(["source", text], [[text, text]], text),
        Findings([("ok", text, text), ("warn", "b", ""), ("fail", "c", "d")], text),
        Facts(
            {text: text, "command": f"foreword demo --x {text}", "seeds": [0, 1], "versions": {"torch": "2.13"}}, text
        ),
    ]
    return Report(text, f"summary {text}", [plot, *(Section(f"{text} {n}", [block]) for n, block in enumerate(blocks))])


class Checker(HTMLParser):
    """Checks that tags nest, and keeps them with the text between them."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_outside_text_is_escaped_everywhere():
    page = render(everything(NASTY))
    checked = Checker(page)
    assert not [tag for tag, _ in checked.tags if tag == "script"]
    assert page.count("</style>") == 1 and "alert('x')</script>" not in page
    shown = "".join(checked.text)
    assert shown.count("<script>alert('x')</script> &") >= 15


def test_the_page_loads_nothing_and_runs_nothing():
    page = render(everything())
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<img|\bon\w+=", page)
    assert "default-src 'none'" in page and 'name="viewport"' in page and "prefers-color-scheme: dark" in page


def test_the_same_report_gives_the_same_bytes(tmp_path):
    first = write_report(tmp_path / "a.html", everything())
    second = write_report(tmp_path / "deep" / "er" / "b.html", everything())
    assert first.read_bytes() == second.read_bytes() == render(everything()).encode()


def test_a_failed_write_leaves_the_old_page_and_no_litter(tmp_path, monkeypatch):
    path = write_report(tmp_path / "a.html", everything())
    before = path.read_bytes()
    broken = SimpleNamespace(**{**vars(os), "replace": lambda *_: (_ for _ in ()).throw(OSError("disk full"))})
    monkeypatch.setattr(report_module, "os", broken)
    with pytest.raises(OSError, match="disk full"):
        write_report(path, everything("new"))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.html"]


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        write_report(tmp_path, everything())


def test_numbers_are_set_as_numbers_and_the_best_in_bold():
    rows = [["a", 1234, Estimate(-1.26, -2, 0.5), 0.5], ["b", 7, Estimate(3, 2.5, 4), math.nan], ["c", 9, None, 0.25]]
    table = Table(["run", "rows", "delta", "loss"], rows, best={"delta": "max", "loss": "min"}, digits={"delta": 1})
    page = render(Report("t", "", [table]))
    cells = [
        re.sub(r"<span.*?>(.*?)</span>", r" [\1]", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page, re.S)
    ]
    assert cells == [
        *("a", "1,234", "−1.3 [−2.0 to 0.5]", "0.50"),
        *("b", "7", "<strong>3.0</strong> [2.5–4.0]", "nan"),
        *("c", "9", "–", "<strong>0.25</strong>"),
    ]
    assert page.count('<th scope="col" class="number">') == 3


def test_two_equal_winners_are_both_bold_and_text_columns_stay_left():
    page = render(Report("t", "", [Table(["a", "b"], [[1.0, "x"], [1.0, 2]], best={"a": "min"})]))
    assert page.count("<strong>") == 2 and page.count('<td class="number">') == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table(["a", "b"], [["only one"]]), r"row 1 has 1 cells for 2 columns \(a, b\)"),
        (lambda: Table(["score"], [[1]], best={"scor": "max"}), "'scor' to find the best in; did you mean 'score'"),
        (lambda: Examples(["a"], [["1", "2"]]), "row 1 has 2 cells"),
        (lambda: Findings([("good", "gradient", "")]), "finding 'gradient' has status 'good'; valid: fail, ok, warn"),
        (lambda: Plot({"train": []}, "step", "loss", faint=("trian",)), "no series 'trian'; did you mean 'train'"),
    ],
)
def test_a_wrong_block_says_what_is_wrong(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_control_characters_and_lone_surrogates_do_not_break_the_page(tmp_path):
    odd = "a\x00b\x1b[31m \ud800 c\u2028d\r\n\ttab"
    page = write_report(tmp_path / "r.html", Report(odd, odd, [Examples(["o"], [[odd]]), Prose(odd)])).read_text(
        "utf-8"
    )
    assert "a\ufffdb\ufffd[31m \ufffd c" in page and "\x00" not in page and "\ttab" in page


def test_contents_appear_with_four_titles_and_point_at_their_sections():
    def page(count):
        return render(Report("t", "s", [Section("Same title", [Prose("x")]) for _ in range(count)]))

    assert "<nav" not in page(3)
    tags = Checker(page(4)).tags
    links = [attrs["href"][1:] for tag, attrs in tags if tag == "a"]
    assert links == [attrs["id"] for tag, attrs in tags if tag == "section"] and len(set(links)) == 4


def test_examples_name_their_column_for_the_phone_and_keep_line_breaks():
    page = render(Report("t", "", [Examples(["source", "poet"], [["one", "two\n  lines"]])]))
    assert '<td data-label="poet" dir="auto">two\n  lines</td>' in page


def test_a_command_can_be_copied_as_it_is():
    page = render(Report("t", "", [Facts({"command": "foreword demo  --out 'a b'"})]))
    code = re.search(r"<code>(.*?)</code>", page)[1]
    assert re.sub(r"<.*?>", "", code).replace("&#39;", "'") == "foreword demo  --out 'a b'"


def test_an_empty_report_is_a_page():
    assert Checker(render(Report("t", ""))).text
    assert Checker(render(Report("t", "", [Table(["a"], []), Plot({}, "x", "y"), Prose("")])))
