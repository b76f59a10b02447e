"""Every command and every Python block of the README runs, in the README's order, with fewer steps and records."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreword.backbone import bundled_backbones
from foreword.cli import main, make_parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEWER_STEPS = ["steps=2", "epochs=null", "data.limit=8", "data.dev_limit=4"]
SMALLER = {"steps=300": "steps=2", "limit=100": "limit=2", "max_new_tokens=32": "max_new_tokens=4"}
INVENTED = """mr,ref
"name[The Heron], eatType[pub]","The Heron is a pub."
"name[Elm], area[riverside]","Elm is by the river."
"""
INVENTED += "".join(f'"name[Inn {i}], eatType[pub]","Inn {i} is a pub."\n' for i in range(8))  # for eight shots
TRIPLES = {
    "entries": [
        {
            str(i): {
                "category": "Building",
                "modifiedtripleset": [{"subject": f"Tower_{i}", "property": "floorCount", "object": str(i)}],
                "lexicalisations": [{"comment": "good", "lex": f"Tower {i} has {i} floors."}],
            }
        }
        for i in range(8)
    ]
}
PHRASES = "sentence\tlabel\n" + "".join(f"a {word} film {i}\t{i % 2}\n" for i in range(6) for word in ("slow", "warm"))


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of each fenced block."""
    return iter(re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.M | re.S))


def commands(shell: str) -> list[list[str]]:
    """The words of each command; a backslash joins lines, `#` starts a comment."""
    lines = shell.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty folder with the recipes beside it and invented E2E, SST-2 and WebNLG rows: no data set is needed."""
    for name in ("trainset.csv", "devset.csv", "testset_w_refs.csv"):
        (tmp_path / "data" / "e2e").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "e2e" / name).write_text(INVENTED, encoding="utf-8")
    (tmp_path / "data" / "glue" / "sst2").mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (tmp_path / "data" / "glue" / "sst2" / f"{split}.tsv").write_text(PHRASES, encoding="utf-8")
    (tmp_path / "data" / "webnlg2017").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / "data" / "webnlg2017" / f"{split}.json").write_text(json.dumps(TRIPLES), encoding="utf-8")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.setenv("FOREWORD_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str]) -> None:
    """Run one command of the README, made small; a training command is also rehearsed as it stands."""
    verb = words[0]
    if verb == "train" and "--resume" in words:
        assert main(words) == 0, words
    elif verb == "train":
        assert main([*words, "--dry-run"]) == 0, words
        assert main([*words, *FEWER_STEPS]) == 0, words
    elif verb == "evaluate":
        assert main([*words, "--limit", "2", "--resamples", "5"]) == 0, words
    elif verb == "generate":
        assert main([*words, "--max-new-tokens", "4"]) == 0, words
    elif verb == "serve":
        serve_until_ready(words)
    elif verb == "doctor":
        assert main(words) in (0, 1), words  # two steps may leave a prompt that the doctor frowns at
    else:
        assert main(words) == 0, words


def serve_until_ready(words: list[str]) -> None:
    """Start the server as a user does, wait until it says that it is ready, and end it as a user does."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "foreword", *words, "--port", str(port)]
    server = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 90
        while not is_ready(port):
            assert server.poll() is None, server.stderr.read()
            assert time.monotonic() < end, "the server was never ready"
            time.sleep(0.2)
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.communicate()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, ConnectionError):
        return False


def test_everything_in_the_readme_runs_in_its_order(fresh, capsys):
    names: dict[str, object] = {}
    counts = {"bash": 0, "python": 0}
    for language, text in blocks(README):
        if language == "python":
            for long, short in SMALLER.items():
                text = text.replace(long, short)
            exec(compile(text, "README.md", "exec"), names)
            counts["python"] += 1
        elif language == "bash":
            for words in commands(text):
                if words[0] == "foreword":
                    run(words[1:])
                    counts["bash"] += 1
    assert counts["bash"] >= 7 and counts["python"] >= 3
    assert len(names["texts"]) == 3 and len(names["scores"]) == 2
    assert names["found"].forgetting.unchanged


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    named = re.findall(r"\bmake ([a-z-]+)\b", README)
    assert {"demo", "test"} <= set(named)
    assert set(named) - {"targets", "those"} <= targets


def test_the_backbone_that_the_readme_names_is_bundled():
    assert set(re.findall(r"foreword-decoder-[\w.]+", README)) <= set(bundled_backbones())


def test_every_page_that_a_page_links_to_is_there():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_file_that_the_paper_map_names_is_there():
    page = (ROOT / "docs" / "PAPERS.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`([\w/]+\.py)`", page))
    assert len(paths) > 15
    assert not [path for path in paths if not any((ROOT / "foreword").rglob(path.rpartition("/")[2]))]
    assert not [path for path in paths if "/" in path and not (ROOT / "foreword" / path).is_file()]


def test_every_verb_is_in_the_readme_or_the_docs():
    text = README + "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    parser = make_parser()
    verbs = next(action for action in parser._actions if action.dest == "command").choices
    assert [verb for verb in verbs if not re.search(rf"(foreword|make) {verb}\b", text)] == []
