import shutil

import pytest

from foreword.data.files import data_folder


@pytest.fixture(scope="session")
def golden():
    """The function that gives the lines of a file of metrics_golden."""
    folder = data_folder()
    if folder is None or not folder.is_dir():
        pytest.skip("FOREWORD_DATA: no public data here, so no golden outputs")

    def lines(relative):
        return (folder / "metrics_golden" / relative).read_text(encoding="utf-8").removesuffix("\n").split("\n")

    return lines


@pytest.fixture(scope="session")
def e2e_golden(golden):
    """Outputs and references of the E2E scorer's own example: 10 instances."""
    groups = "\n".join(golden("e2e/devel-conc.txt")).strip("\n").split("\n\n")
    return golden("e2e/baseline-output.txt"), [group.split("\n") for group in groups]


@pytest.fixture(scope="session")
def triples_golden(golden):
    """The function that gives outputs and three references each of `webnlg` (1,862) or `dart` (5,097)."""

    def read(name):
        references = [golden(f"{name}/reference{k}.txt") for k in range(3)]
        return golden(f"{name}/hypotheses.txt"), [list(texts) for texts in zip(*references, strict=True)]

    return read


@pytest.fixture(scope="session")
def java():
    if shutil.which("java") is None:
        pytest.skip("no Java here, so no METEOR and no PTB tokenizer")
