"""The demo's page: what was learned, how good it is, what came out, what the doctor said."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

import foreword
from foreword.backbone import Backbone
from foreword.doctor import Findings
from foreword.evaluate.job import Evaluation
from foreword.evaluate.runner import Scores
from foreword.experiments import report as page
from foreword.experiments.plots import Point
from foreword.tasks.venues import parse_source, unstated_fields
from foreword.train.run import TrainResult
from foreword.train.run_config import RunConfig

HEADLINE_METRIC = {"venues": "BLEU", "sentiment": "accuracy", "headlines": "ROUGE-L"}
SHOWN_EXAMPLES = 4
SHOWN_CHARACTERS = 300


@dataclass(frozen=True, eq=False)
class Learned:
    """One task's outcome: the resolved run, its result, and its scores before and after."""

    config: RunConfig
    result: TrainResult
    scored: Evaluation

    @property
    def name(self) -> str:
        """The task's name."""
        return self.config.task

    @property
    def what(self) -> str:
        """The prompt in words: `prefix of 10`."""
        return f"{self.config.prompt.kind} of {self.config.prompt.length}"


@dataclass(frozen=True)
class MixedRow:
    """One row of the mixed batch: its prompt's name, its text, what came out, and whether alone the same came out."""

    prompt: str
    text: str
    output: str
    same_alone: bool


def demo_page(
    learned: Sequence[Learned],
    backbone: Backbone,
    findings: Findings,
    mixed: Sequence[MixedRow],
    seconds: float,
    encoder_decoder: Sequence[Learned] = (),
) -> page.Report:
    """Return the demo's report.

    Args:
        learned: one entry a task, the main one first.
        backbone: the frozen model.
        findings: the doctor's, on the main task's prompt.
        mixed: the rows of the mixed batch.
        seconds: wall-clock of the whole demo.
        encoder_decoder: outcomes on another, encoder-decoder backbone; shown in a section of their own.
    """
    other = [block for run in encoder_decoder for block in (_score_table([run]), _curves(run), _side_by_side(run))]
    sections = [
        page.Section("Before and after", [_highlights(learned), _score_table(learned), _facts_stated(learned[0])]),
        page.Section("Curves", [_curves(run) for run in learned]),
        page.Section("Outputs side by side", [_side_by_side(run) for run in learned]),
        page.Section("One batch, four kinds of row", [_mixed(mixed)]),
        *([page.Section("The same on an encoder-decoder", other)] if other else []),
        page.Section("The doctor's findings", [_findings(learned[0], findings)]),
        page.Section("How this was made", [_facts(learned, backbone, seconds)]),
    ]
    return page.Report(
        title="Foreword demo",
        summary=(
            f"Three soft prompts were learned in front of one frozen model of {_count(backbone):,} parameters, which "
            "had never seen their tasks. The model's weights did not change; each prompt is a few thousand numbers."
        ),
        sections=sections,
    )


def _count(backbone: Backbone) -> int:
    return sum(parameter.numel() for parameter in backbone.model.parameters())


def _pair(run: Learned) -> tuple[Scores, Scores]:
    """Return the scores before and after."""
    return run.scored.scores["untouched"], run.scored.scores[run.scored.subject]


def _highlights(learned: Sequence[Learned]) -> page.Highlights:
    items = []
    for run in learned:
        before, after = (scores.metrics[HEADLINE_METRIC[run.name]] for scores in _pair(run))
        label = f"{HEADLINE_METRIC[run.name]} of {run.name}, by {run.result.prompt.num_stored:,} numbers"
        items.append((f"{before:.2f} → {after:.2f}", label))
    return page.Highlights(items)


def _score_table(learned: Sequence[Learned]) -> page.Table:
    rows = []
    for run in learned:
        before, after = _pair(run)
        for metric in after.metrics:
            rows.append((run.name, metric, _estimate(before, metric), _estimate(after, metric)))
    return page.Table(
        ("task", "metric", "before", "after"),
        rows,
        caption=(
            "Test scores with 95 % bootstrap intervals: before, the untouched backbone; after, with the prompt; both "
            "with the same input and decoding. "
            + "; ".join(f"{run.name}: {run.what}, {run.scored.scores[run.scored.subject].n} records" for run in learned)
            + (". Sentiment's two labels are in balance: guessing one of them gives 0.5." if len(learned) > 1 else ".")
        ),
        digits=3,
    )


def _estimate(scores: Scores, metric: str) -> page.Estimate | float:
    found = scores.intervals.get(metric)
    return page.Estimate(found.value, found.low, found.high) if found else scores.metrics[metric]


def _facts_stated(run: Learned) -> page.Table:
    """Return how many fields of the tables the outputs state, which BLEU does not tell."""
    rows = []
    for name, what in (("untouched", "untouched backbone"), (run.scored.subject, run.what)):
        predictions = run.scored.predictions[name]
        total = sum(len(parse_source(row["source"])) for row in predictions)
        missed = sum(len(unstated_fields(row["source"], row["prediction"])) for row in predictions)
        rows.append((what, 1 - missed / total, total))
    return page.Table(
        ("what ran", "fields stated", "fields"),
        rows,
        caption="Share of the tables' fields whose value, or a known paraphrase of it, occurs in the output.",
        best={"fields stated": "max"},
        digits=3,
    )


def read_curves(run_dir: Path) -> tuple[list[Point], list[Point]]:
    """Return the training and the dev loss by step from a run's metrics.jsonl."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    train = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    return train, [(row["step"], row["dev_loss"]) for row in rows if "dev_loss" in row]


def _curves(run: Learned) -> page.Plot:
    train, dev = read_curves(Path(run.config.run_dir))
    series = {"each step": train, "mean of 20 steps": page.smoothed(train), "dev": dev}
    return page.Plot(
        series,
        x_label=f"{run.name}: optimiser step",
        y_label="loss, nats per token",
        caption=f"{run.name}, {run.what} virtual tokens, {run.result.steps} steps in {run.result.seconds:.0f} s.",
        faint=("each step",),
    )


def _side_by_side(run: Learned) -> page.Examples:
    before, after = run.scored.predictions["untouched"], run.scored.predictions[run.scored.subject]
    rows = [
        (str(one["source"]), str(one["targets"][0]), _short(str(one["prediction"])), _short(str(two["prediction"])))
        for one, two in list(zip(before, after, strict=True))[:SHOWN_EXAMPLES]
    ]
    return page.Examples(
        ("source", "one reference", "untouched backbone", run.what),
        rows,
        caption=f"{run.name}: the first test records that were scored, not chosen.",
    )


def _short(text: str) -> str:
    """Return a text cut where it no longer tells anything: an untouched model often repeats itself to the limit."""
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS].rsplit(" ", 1)[0] + " …"


def _mixed(mixed: Sequence[MixedRow]) -> page.Examples:
    same = sum(row.same_alone for row in mixed)
    return page.Examples(
        ("prompt", "text", "output"),
        [(row.prompt, row.text, _short(row.output)) for row in mixed],
        caption=(
            f"All {len(mixed)} rows ran in one batch, each with its own prompt or none; {same} of them came out "
            "as in a run of their own, letter for letter."
        ),
    )


def _findings(run: Learned, findings: Findings) -> page.Findings:
    items = [("ok" if check.passed else "fail", check.name, check.detail) for check in findings.checks]
    return page.Findings(items, caption=f"What foreword doctor {run.config.run_dir} prints.")


def _facts(learned: Sequence[Learned], backbone: Backbone, seconds: float) -> page.Facts:
    same = all(run.scored.forgetting.unchanged for run in learned)
    return page.Facts(
        {
            "command": "make demo",
            "backbone": backbone.source,
            "parameters, frozen": _count(backbone),
            "loss on unrelated text without a prompt": "unchanged to the last bit" if same else "changed",
            "learning rates": {run.name: run.config.optim.lr for run in learned},
            "steps": {run.name: run.result.steps for run in learned},
            "training seconds": {run.name: round(run.result.seconds) for run in learned},
            "seconds in all": round(seconds),
            "threads": torch.get_num_threads(),
            "machine": f"{platform.system()} {platform.machine()}",
            "versions": {
                "foreword": foreword.__version__, "torch": torch.__version__, "transformers": transformers.__version__
            },
        }
    )
