"""The baselines by name: a fresh learner of one, and a saved one put back on its backbone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.artifact.directory import MANIFEST, TRAINING
from foreword.backbone import Backbone
from foreword.baselines.adapter import Adapter, load_adapter
from foreword.baselines.autoprompt import trigger
from foreword.baselines.fine_tune import FineTune
from foreword.baselines.lora import Lora, load_lora
from foreword.baselines.model_learner import ModelLearner
from foreword.baselines.saved import SavedBaseline, is_baseline, read_baseline
from foreword.baselines.top_layers import TopLayers, load_top_layers
from foreword.baselines.written import Written, WrittenPrompt, kept_text, load_written
from foreword.data.records import Record
from foreword.errors import ArtifactError, nearest

LEARNERS: Mapping[str, type[FineTune] | type[TopLayers] | type[Adapter] | type[Lora]] = {
    "fine_tune": FineTune,
    "top_layers": TopLayers,
    "adapter": Adapter,
    "lora": Lora,
}
LOADERS: Mapping[str, Callable[[Path, SavedBaseline, Backbone], None]] = {
    "top_layers": load_top_layers,
    "adapter": load_adapter,
    "lora": load_lora,
}

KEPT_TEXTS: Mapping[str, Callable[[SavedBaseline], str]] = {"written": kept_text, trigger.METHOD: trigger.kept_text}
"""What must be kept of methods that learn words and no tensors."""


def make_baseline(
    method: str, spec: Any, backbone: Backbone, seed: int, records: Sequence[Record], labels: Sequence[str]
) -> tuple[ModelLearner | Written, str]:
    """Return a fresh learner of a method, and a line on what it starts from.

    Args:
        method: `written`, or a key of `LEARNERS`.
        spec: the method's options.
        backbone: what it changes; load one for this run alone.
        seed: of its initialisation, its dropout, or its draw of examples.
        records: the training records, for `written`.
        labels: the task's labels, for `written`.

    Raises:
        ForewordError: the method cannot work on this backbone.
    """
    if method == "written":
        learner = Written(spec, backbone, seed, records, labels)
        return learner, f"{len(learner.written.examples)} examples, nothing to train"
    learner = LEARNERS[method](spec, backbone, seed)
    count = sum(parameter.numel() for parameter in learner.parameters().values())
    return learner, f"{learner.spec.title}: {count:,} trainable parameters of the model and what was put into it"


def apply_baseline(directory: str | Path, backbone: Backbone) -> WrittenPrompt | None:
    """Put a saved baseline back on a fresh copy of its backbone, in place; return the words of a written prompt.

    Args:
        directory: an artefact of `top_layers`, `adapter`, `lora` or `written`; a `fine_tune` is a model of its own.
        backbone: loaded for this alone.

    Raises:
        ArtifactError: damaged, of an unknown method, or learned on another backbone.
        BackboneError: the backbone carries another baseline already.
    """
    saved = read_baseline(directory)
    if saved.method == "written":
        return load_written(saved, backbone)
    if saved.method not in LOADERS:
        raise ArtifactError(
            f"{Path(directory) / MANIFEST}: method = {saved.method!r} cannot be put on a backbone"
            f"{nearest(saved.method, (*LOADERS, 'written'))}"
        )
    LOADERS[saved.method](Path(directory), saved, backbone)
    return None


def stored_bytes(artifact: str | Path) -> int:
    """Return the bytes that must be kept beside the backbone to use a result: a prompt's or a baseline's.

    Tensors count as their files (without those that only training needs), learned words as their UTF-8.
    """
    if is_baseline(artifact):
        saved = read_baseline(artifact)
        if saved.method in KEPT_TEXTS:
            return len(KEPT_TEXTS[saved.method](saved).encode())
    return sum(path.stat().st_size for path in Path(artifact).glob("*.safetensors") if path.name != TRAINING)
