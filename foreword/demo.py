"""`make demo`: soft prompts learned on the bundled backbones, measured, mixed in one batch, and shown on a page.

    demo(out)   learn venues, sentiment and headlines on the decoder, venues on the T5 · score each before and after ·
                examine the decoder's venues prefix · generate for all its prompts and for none in one batch ·
                write report.html

The tasks are Foreword's own (`foreword.tasks.venues` and its neighbours); the backbones never saw them.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from foreword.artifact import load_prompt
from foreword.backbone import Backbone, load_backbone
from foreword.doctor import examine
from foreword.evaluate.job import evaluate
from foreword.experiments.demo_page import Learned, MixedRow, demo_page
from foreword.experiments.report import write_report
from foreword.generate import generate
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.prompts.spec import PromptSpec
from foreword.tasks import get_task
from foreword.train.job import train
from foreword.train.optim import OptimConfig, ScheduleConfig
from foreword.train.run_config import CheckpointConfig, DataConfig, DevConfig, RunConfig, TrainBatch, resolve

Say = Callable[[str], None]

_SHARED = TrainBatch(rows=16, share_sources=True)

SCORED = {"venues": 100, "sentiment": 200, "headlines": 100}
"""Test records scored per task: enough for an interval worth reading, few enough for minutes."""

ENCODER_DECODER, ENCODER_DECODER_SCORED = "foreword-t5-6m-lm10", 40

PLAIN_TEXTS = ("The old library at the end of the street", "In the spring of that year")


def configs(out: Path, backbone: str | None = None, steps: int | None = None) -> list[RunConfig]:
    """Return the demo's three runs: a prefix for tables, a prompt for reviews, a prefix for notices.

    Args:
        out: folder of the run directories.
        backbone: name or directory; None takes the first bundled one.
        steps: of the venues run; the others take a smaller share of it.
    """
    steps = steps or 200
    # A direct prefix holds keys and values of size 1 to 2: it takes a rate that would wreck weights (docs/LOG.md).
    mixed = TrainBatch(rows=32)
    runs = (
        _config(out, "venues", PromptSpec(kind="prefix", length=10), 0.3, steps, _SHARED),
        _config(out, "sentiment", PromptSpec(kind="prompt", length=20), 5e-2, steps * 2 // 5, mixed),
        _config(out, "headlines", PromptSpec(kind="prefix", length=5), 0.3, steps // 2, _SHARED),
    )
    chosen = [dataclasses.replace(run, backbone=dataclasses.replace(run.backbone, source=backbone)) for run in runs]
    return [resolve(run) for run in chosen]


def encoder_decoder_config(out: Path, steps: int | None = None) -> RunConfig:
    """Return the run of venues on the bundled T5; arguments as for `configs`."""
    config = _config(out, "venues", PromptSpec(kind="prefix", length=10), 0.1, (steps or 200) * 3 // 5, _SHARED)
    backbone = dataclasses.replace(config.backbone, source=ENCODER_DECODER)
    return resolve(dataclasses.replace(config, backbone=backbone, run_dir=str(out / "venues-t5")))


def _config(out: Path, task: str, prompt: PromptSpec, lr: float, steps: int, batch: TrainBatch) -> RunConfig:
    return RunConfig(
        task=task,
        run_dir=str(out / task),
        prompt=prompt,
        optim=OptimConfig(lr=lr),
        schedule=ScheduleConfig(warmup=min(5, steps // 4)),
        batch=batch,
        steps=steps,
        data=DataConfig(dev_limit=30),
        dev=DevConfig(every=max(1, steps // 6)),
        checkpoint=CheckpointConfig(every=0),
    )


def demo(out: Path, *, backbone: str | None = None, steps: int | None = None, say: Say = print) -> Path:
    """Return the report's path after learning, scoring, examining and mixing; a few minutes on two CPU cores.

    Args:
        out: folder of the runs and of `report.html`; an earlier demo's runs in it are replaced.
        backbone: name or directory; None takes the first bundled one, and the bundled T5 beside it.
        steps: of the venues run.
        say: takes one line at each stage.

    Raises:
        ConfigError: no backbone is named and none is bundled.
    """
    started = time.monotonic()
    runs = configs(out, backbone, steps)
    beside = [encoder_decoder_config(out, steps)] if backbone is None else []
    stages, learned = len(runs) + len(beside) + 2, []
    for number, config in enumerate([*runs, *beside], 1):
        where = " on the T5" if config in beside else ""
        what = f"{config.prompt.kind} of {config.prompt.length} virtual tokens"
        say(f"[{number}/{stages}] {config.task}{where}: {what}")
        learned.append(_learn(config, ENCODER_DECODER_SCORED if config in beside else SCORED[config.task], say))
    learned, other = learned[: len(runs)], learned[len(runs) :]

    say(f"[{stages - 1}/{stages}] examine the venues prefix, then one mixed batch")
    model = load_backbone(runs[0].backbone.source)
    prompts = {run.name: load_prompt(run.result.artifact_dir, model) for run in learned}
    findings = examine(prompts["venues"], model, texts=[r.source for r in get_task("venues").load("test", 3)])
    mixed = mix(model, prompts)
    for row in mixed:
        say(f"  {row.prompt:>9} | {row.text[:50]!r} -> {row.output[:70]!r}")

    say(f"[{stages}/{stages}] write the report")
    page = demo_page(learned, model, findings, mixed, time.monotonic() - started, other)
    return write_report(out / "report.html", page)


def _learn(config: RunConfig, scored_records: int, say: Say) -> Learned:
    """Train one prompt and score it beside the untouched backbone."""
    run_dir = Path(config.run_dir)
    if (run_dir / "config.yaml").is_file():  # an earlier demo's
        shutil.rmtree(run_dir)
    result = train(config)
    scored = evaluate(run_dir, limit=scored_records, batch_size=50)
    scored.write(run_dir)
    for name, scores in scored.scores.items():
        say(f"  {name}: " + "  ".join(f"{metric} {value:.3f}" for metric, value in scores.metrics.items()))
    return Learned(config, result, scored)


def mix(backbone: Backbone, prompts: dict[str, SoftPrompt]) -> list[MixedRow]:
    """Return two rows for each prompt and two without, generated in one batch, each compared with a run of its own."""
    rows = [(name, record.source) for name in prompts for record in get_task(name).load("test", 2)]
    rows += [("none", text) for text in PLAIN_TEXTS]
    rows = rows[::2] + rows[1::2]  # neighbours have different prompts
    given = [prompts.get(name) for name, _ in rows]
    together = generate(backbone, [text for _, text in rows], given, max_new_tokens=64)
    made = []
    for (name, text), prompt, output in zip(rows, given, together, strict=True):
        alone = generate(backbone, [text], [prompt], max_new_tokens=64)[0]
        made.append(MixedRow(name, text, output, output == alone))
    return made
