"""One pretraining run, told from its recipe to its backbone directory."""

import json
import math
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from foreword.config import build, dump_yaml, load_yaml, override, to_dict
from foreword.errors import BackboneError, ConfigError, TrainingError
from foreword.pretrain.ahead import Ahead
from foreword.pretrain.batch import Batch, Loss, Objective, compile_blocks, make_batch, row_context
from foreword.pretrain.card import save_backbone
from foreword.pretrain.measure import Ruler
from foreword.pretrain.models import Family, build_model, count_parameters
from foreword.pretrain.optim import OptimConfig, build_optimizers, decay_steps, lr_factor, restore, set_lr
from foreword.pretrain.pack import Mixture, open_stream
from foreword.pretrain.prepare import DataConfig, prepare
from foreword.pretrain.step import OptimStep
from foreword.pretrain.tokenizer import load_tokenizer

_LOADERS = 4  # processes that make batches for a GPU


@dataclass(frozen=True)
class PretrainConfig:
    """A recipe. Tokens a step are `micro_rows` × `accumulation` × `context`."""

    name: str
    family: Family
    size: str
    objective: Objective
    steps: int
    run: Path = Path("runs/pretrain")  # the run directory is run/name
    init: Path | None = None  # a backbone directory to go on from (LM adaptation)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    copy_share: float | None = None  # of the rows; as the data were prepared when left out
    decay_copy_share: float | None = None  # of the rows of the last `decay_share` of the steps
    context: int = 512
    positions: int = 1024
    micro_rows: int = 16
    accumulation: int = 1
    split_multiple: int = 1  # prefix-LM splits are multiples of it; above 1 keeps a batch to few shapes
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    compile: bool = True
    cuda_graphs: bool = True  # on a GPU, for steps of one micro-batch
    threads: int = 0  # of a CPU; 0 leaves PyTorch's own number
    seed: int = 0
    deadline_sec: float | None = None  # begin the decay in time to end so long after this process began
    log_every: int = 10
    eval_every: int = 500
    eval_tokens: int = 8192  # of each source at a checkpoint; four times as many at the end
    save_every: int = 250


def pretrain(recipe: str | Path, overrides: list[str] | None = None) -> Path:
    """Return the backbone directory that a recipe trains; a run that was stopped goes on where it was.

    Args:
        recipe: YAML of `PretrainConfig`.
        overrides: `field.path=value` assignments.

    Raises:
        ConfigError, DataError: the recipe or its data cannot be used.
        TrainingError: the loss is not a number, or the run directory belongs to another recipe.
    """
    return Run(build(PretrainConfig, override(load_yaml(recipe), overrides or []))).train()


@dataclass
class Progress:
    """What resuming needs besides weights and optimiser: everything random follows from the seed and the step."""

    step: int = 0
    decay_start: int | None = None
    stop: int = 0  # steps in all; a deadline can shorten the run


class Run:
    """One run: its directory, its model, its data, and where it stands."""

    def __init__(self, config: PretrainConfig) -> None:
        _check(config)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.folder = config.run / config.name
        _claim(self.folder, config)
        self.device = _device(config.device)
        data = prepare(config.data)
        self.tokenizer = load_tokenizer(data / "tokenizer")
        self.pad = int(self.tokenizer.pad_token_id)
        streams = {path.stem: open_stream(path) for path in sorted((data / "train").glob("*.bin"))}
        self.mixture, self.decay_mixture = self._mixtures(streams)
        heldout = {path.stem: open_stream(path) for path in sorted((data / "heldout").glob("*.bin"))}
        self.ruler = Ruler(self.tokenizer, heldout, config.context)
        self.model = self._model().to(self.device)
        self.optimizers = build_optimizers(self.model, config.optim)
        on_gpu = self.device.type == "cuda"
        if on_gpu and config.family == "t5":
            # Prefix-LM steps gave NaN here with the fused kernels, for a reason that was not found (docs/LOG.md,
            # 2026-11-26); none of 2,840 has with plain attention, all with splits in multiples of 64. Which of the two
            # is faster was not measured.
            self.model.set_attn_implementation("eager")
        # Prefix-LM splits give a batch many shapes, and compiling each took longer than a whole adaptation.
        if config.compile and config.objective != "prefix_lm":
            compile_blocks(self.model)
        self.step = OptimStep(
            self.model,
            self.optimizers,
            Loss(config.compile),
            config.optim.grad_clip,
            bfloat16=config.precision == "bfloat16",
            graphed=on_gpu and config.cuda_graphs and config.optim.kind != "muon",  # PyTorch's takes numbers for rates
        )
        self.ahead = Ahead(self._batches, _LOADERS if on_gpu else 0, pin=on_gpu)
        self.progress = Progress(stop=config.steps)
        self.began = time.monotonic()
        self.first_step = 0  # of this process
        self.pace_from: tuple[int, float] | None = None  # (steps, seconds) when compiling was over

    def train(self) -> Path:
        """Return the finished backbone's directory."""
        self._resume()
        self.model.train()
        while self.progress.step < self.progress.stop:
            self._watch_deadline()
            metrics = self._step()
            self.progress.step += 1
            if self.progress.step % self.config.log_every == 0 or self.progress.step == 1:
                self._log(metrics)
            if self.progress.step % self.config.eval_every == 0 and self.progress.step < self.progress.stop:
                self._record("metrics", self.ruler.measure(self.model, self.config.eval_tokens))
            if self.progress.step % self.config.save_every == 0:
                self._save()
        return self._finish()

    def _step(self) -> dict[str, Tensor]:
        """Make one optimiser step; return its mean loss (nats a target) and gradient norm."""
        config, step = self.config, self.progress.step
        set_lr(self.optimizers, lr_factor(config.optim, step, self.progress.stop, self.progress.decay_start))
        return self.step(self.ahead.take(step))

    def _batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step, a function of (seed, step) alone."""
        config, batches = self.config, []
        rng = np.random.default_rng([config.seed, step])
        for micro in range(config.accumulation):
            rows = self._mixture(step).rows(step * config.accumulation + micro, config.micro_rows)
            batches.append(make_batch(config.objective, rows, rng, self.model.config.vocab_size, config.split_multiple))
        return batches

    def _mixture(self, step: int) -> Mixture:
        start = self.progress.decay_start
        if start is None:
            start = self.progress.stop - decay_steps(self.config.optim, self.progress.stop)
        return self.mixture if step < start else self.decay_mixture

    def _mixtures(self, streams: dict[str, np.ndarray]) -> tuple[Mixture, Mixture]:
        config = self.config
        share = config.data.copy_share if config.copy_share is None else config.copy_share
        last = share if config.decay_copy_share is None else config.decay_copy_share
        context = row_context(config.objective, config.context)
        # Objectives read one stream in different orders, or LM adaptation would begin with the rows just seen.
        seed = config.seed + {"causal": 0, "span_corruption": 1000, "prefix_lm": 2000}[config.objective]
        first, second = (
            Mixture(streams, config.data.weights(s), context, self.pad, seed + i) for i, s in enumerate((share, last))
        )
        return first, second

    def _model(self) -> PreTrainedModel:
        config = self.config
        if config.init is None:
            return build_model(config.family, config.size, len(self.tokenizer), config.positions, config.seed)
        if not (config.init / "config.json").is_file():
            raise BackboneError(f"init = {str(config.init)!r} holds no backbone; pretrain it first")
        kind = AutoModelForCausalLM if config.family == "decoder" else AutoModelForSeq2SeqLM
        return kind.from_pretrained(str(config.init), dtype=torch.float32)

    def _watch_deadline(self) -> None:
        """Begin the decay once the time left is what the decay needs, at the pace so far."""
        config, progress = self.config, self.progress
        made = progress.step - self.first_step
        if config.deadline_sec is None or progress.decay_start is not None or made < 50:
            return
        spent = time.monotonic() - self.began
        # The first steps compile, so their time counts but is not part of the pace.
        if self.pace_from is None:
            self.pace_from = (made, spent)
            return
        pace = (spent - self.pace_from[1]) / (made - self.pace_from[0])
        length = round(config.optim.decay_share / (1 - config.optim.decay_share) * progress.step)
        if spent + pace * length >= config.deadline_sec:
            progress.decay_start, progress.stop = progress.step, progress.step + length
            self.ahead.forget()  # the decay has a mixture of its own

    def _log(self, metrics: dict[str, Any]) -> None:
        loss = float(metrics["loss"])
        if not math.isfinite(loss):
            raise TrainingError(
                f"loss = {loss} at step {self.progress.step}; lower optim.matrix_lr or optim.embedding_lr"
            )
        factor = lr_factor(self.config.optim, self.progress.step - 1, self.progress.stop, self.progress.decay_start)
        figures = {"loss": loss, "grad_norm": float(metrics["grad_norm"]), "lr_factor": factor}
        self._record("metrics", figures)
        spent = time.monotonic() - self.began
        made = self.progress.step - self.first_step
        pace = made * self._step_tokens() / spent
        # The clock has a file of its own: metrics.jsonl is the same for the same recipe.
        self._record("timing", {"sec": round(spent, 2), "tok_per_sec": round(pace)})
        print(
            f"{self.config.name} step {self.progress.step}/{self.progress.stop} loss {loss:.4f} {pace:,.0f} tok/s",
            flush=True,
        )

    def _step_tokens(self) -> int:
        return self.config.micro_rows * self.config.accumulation * self.config.context

    def _record(self, name: str, figures: dict[str, Any]) -> None:
        line = {"step": self.progress.step, "tokens": self.progress.step * self._step_tokens(), **figures}
        with (self.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        """Write the state whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": vars(self.progress),
        }
        partial = self.folder / "state.pt.partial"
        torch.save(state, partial)
        os.replace(partial, self.folder / "state.pt")

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        if path.is_file():
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                restore(optimizer, saved)
            self.progress = Progress(**state["progress"])
        self.first_step = self.progress.step
        for name in ("metrics", "timing"):
            _cut(self.folder / f"{name}.jsonl", self.progress.step)

    def _finish(self) -> Path:
        scores = self.ruler.measure(self.model, 4 * self.config.eval_tokens)
        if not any("final" in line for line in read_metrics(self.folder)[-1:]):
            self._record("metrics", {"final": True, **scores})
        self._save()
        facts = {
            "recipe": _shippable(self.config),
            "parameters": count_parameters(self.model),
            "steps": self.progress.step,
            "tokens": self.progress.step * self._step_tokens(),
            "device": str(self.device),
            "manifest": json.loads((self.config.data.folder / "manifest.json").read_text(encoding="utf-8")),
            "before": None if self.config.init is None else _life_of(self.config.init),
            **scores,
        }
        return save_backbone(
            self.folder / "backbone", self.model, self.tokenizer, facts, curve=self.folder / "metrics.jsonl"
        )


def _life_of(backbone: Path) -> dict[str, Any] | None:
    """Return what made the backbone that a run goes on from, by its own `pretraining.json`; None if it has none."""
    path = backbone / "pretraining.json"
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    return {key: facts.get(key) for key in ("recipe", "steps", "tokens", "device", "before")}


def _shippable(config: PretrainConfig) -> dict[str, Any]:
    """Return the recipe as a mapping without the paths of the machine it ran on, and what only made it faster."""
    tree = to_dict(config)
    del tree["run"], tree["data"]["folder"], tree["data"]["tokenizer"], tree["cuda_graphs"]
    tree["init"] = None if config.init is None else config.init.parent.name
    return tree


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run directory's `metrics.jsonl`, oldest first."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _cut(path: Path, step: int) -> None:
    """Drop the lines a run wrote after the state it resumes from, so that none is there twice."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, path)


def _claim(folder: Path, config: PretrainConfig) -> None:
    """Write the resolved config, or refuse a directory that holds another run."""
    path = folder / "config.yaml"
    # How fast a run goes, and where, is not part of what it is.
    where = {"device": "auto", "threads": 0, "run": Path(".")}
    loose = {**where, "deadline_sec": None, "save_every": 1, "cuda_graphs": True}
    if path.is_file():
        before = build(PretrainConfig, load_yaml(path))
        if replace(before, **loose) != replace(config, **loose):
            raise TrainingError(f"run directory {str(folder)!r} holds a run of another config; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    dump_yaml(config, path)


def _check(config: PretrainConfig) -> None:
    if (config.objective == "causal") != (config.family == "decoder"):
        raise ConfigError(
            f"objective = {config.objective!r} does not fit family = {config.family!r}; a decoder is causal"
        )
    if config.context > config.positions:
        raise ConfigError(f"context = {config.context} is above positions = {config.positions}; raise positions")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
