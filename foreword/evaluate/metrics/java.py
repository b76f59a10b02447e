"""METEOR 1.5 and the Stanford PTB tokenizer: the Java programs inside the `pycocoevalcap` package."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foreword.data.extras import load_extra
from foreword.errors import DataError, MissingExtraError

# What the captioning scorers drop after PTB tokenisation. Lower-casing turns brackets into -lrb- and the like, which
# this list does not match: brackets stay, as in the official values.
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:-;", "--", "..."])

# Columns of METEOR's statistics.
OUTPUT_WORDS, REFERENCE_WORDS, CHUNKS, OUTPUT_MATCHES, REFERENCE_MATCHES = 0, 1, 20, 21, 22
FUNCTION_WORDS, MATCHES = slice(2, 4), slice(4, 20)

# METEOR 1.5, English, task "rank": exact, stem, synonym and paraphrase matches.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGE_WEIGHTS = (1.0, 0.6, 0.8, 0.6)


def find_jar(relative: str, purpose: str) -> tuple[str, Path]:
    """Return the `java` command and the path of a jar of pycocoevalcap.

    Raises:
        MissingExtraError: no Java, or no pycocoevalcap; `purpose` starts the message.
    """
    java = shutil.which("java")
    if java is None:
        raise MissingExtraError(f"{purpose} needs Java: install a runtime (version 8 or later) so that `java` is found")
    folder, _, module = relative.partition("/")
    package = load_extra(f"pycocoevalcap.{folder}", purpose)
    jar = Path(next(iter(package.__path__))) / module
    if not jar.is_file():
        raise MissingExtraError(f"{purpose} needs {jar.name}, missing in {jar.parent}: reinstall 'foreword[eval]'")
    return java, jar


def run_java(arguments: Sequence[str], lines: Sequence[str], purpose: str) -> list[str]:
    """Return the lines that a Java program prints when it reads `lines`, all in UTF-8.

    Raises:
        DataError: the program failed; gives the last line of its complaint.
    """
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(arguments, input=text.encode(), capture_output=True, check=False)
    if done.returncode != 0:
        complaint = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise DataError(f"{purpose} failed with exit code {done.returncode}: {complaint[0][:200]}")
    return done.stdout.decode().split("\n")[:-1]


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Return texts as lower-cased PTB tokens joined by spaces, without the punctuation marks that the captioning
    scorers drop.

    Raises:
        MissingExtraError: no Java or no pycocoevalcap.
    """
    purpose = "the PTB tokenizer"
    java, jar = find_jar("tokenizer/stanford-corenlp-3.4.1.jar", purpose)
    program = [java, "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    options = ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    lines = run_java([*program, *options], [one_line(text) for text in texts], purpose)
    if len(lines) != len(texts):
        raise DataError(f"{purpose} gave {len(lines)} lines for {len(texts)} texts; a text holds an odd line break")
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in lines]


def one_line(text: str) -> str:
    """Return the text with every line break as a space; Java also breaks lines at characters Python prints."""
    return " ".join(text.splitlines())


def meteor_rows(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Return METEOR 1.5's statistics of each instance against its best reference, [N, 23] (`-l en -norm`)."""
    pairs = zip(outputs, references, strict=True)
    lines = _meteor([" ||| ".join(["SCORE", *map(_field, texts), _field(output)]) for output, texts in pairs])
    rows = np.array([[float(number) for number in line.split()] for line in lines])
    whole = (rows[:, OUTPUT_MATCHES] == rows[:, OUTPUT_WORDS]) & (
        rows[:, REFERENCE_MATCHES] == rows[:, REFERENCE_WORDS]
    )
    # The program's own aggregation counts no chunk for an output that matches as a whole; summing does not know that.
    rows[whole & (rows[:, CHUNKS] == 1), CHUNKS] = 0
    return rows


def meteor_scores(sums: np.ndarray) -> np.ndarray:
    """Return METEOR [R] of summed statistics [R, 23].

    Denkowski and Lavie 2014, section 2, with the English parameters of version 1.5; equal to the program's EVAL, and
    a thousand resamples need no Java.
    """
    matches = sums[:, MATCHES].reshape(len(sums), 4, 2, 2)  # [R, stage, content or function, output or reference]
    function = sums[:, FUNCTION_WORDS]  # [R, output or reference]
    content = sums[:, [OUTPUT_WORDS, REFERENCE_WORDS]] - function
    matched = np.einsum("rskt,s,k->rt", matches, STAGE_WEIGHTS, [DELTA, 1 - DELTA])
    total = DELTA * content + (1 - DELTA) * function
    precision, recall = _ratio(matched, total).T
    mean = _ratio(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    words = sums[:, [OUTPUT_MATCHES, REFERENCE_MATCHES]].mean(1)
    return mean * (1 - GAMMA * _ratio(sums[:, CHUNKS], words) ** BETA)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


def _field(text: str) -> str:
    return one_line(text).replace("|||", "").replace("  ", " ")


def _meteor(lines: list[str]) -> list[str]:
    java, jar = find_jar("meteor/meteor-1.5.jar", "METEOR")
    arguments = [java, "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    return run_java(arguments, lines, "METEOR")
