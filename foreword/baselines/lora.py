"""LoRA (Hu et al. 2021) through PEFT: inserted, initialised and stored by that library."""

import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from foreword.artifact.directory import PEFT_CONFIG
from foreword.artifact.format import REFETCH
from foreword.backbone import Backbone
from foreword.baselines.model_learner import ModelLearner, begin_change
from foreword.baselines.saved import SavedBaseline, check_belongs, read_changes, read_stored, write_tensors
from foreword.errors import ArtifactError, BackboneError, ConfigError, MissingExtraError


@dataclass(frozen=True)
class LoraSpec:
    """LoRA's sizes; the defaults are Hu et al.'s for GPT-2 on E2E (their table 11).

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / rank.
        targets: names of the linear layers to adapt; empty takes PEFT's choice for the architecture (queries and
            values, where they are separate); `all-linear` takes all but the head.
        lora_dropout: dropout on the input of each update.
        dropout: run the model's own dropout while training.
    """

    rank: int = 4
    alpha: int = 32
    targets: tuple[str, ...] = ()
    lora_dropout: float = 0.0
    dropout: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(f"lora.rank = {self.rank!r} and lora.alpha = {self.alpha!r} must be positive")
        if not 0 <= self.lora_dropout < 1:
            raise ConfigError(f"lora.lora_dropout = {self.lora_dropout!r} must be in [0, 1)")

    @property
    def title(self) -> str:
        """A short name."""
        return f"lora{self.rank}"


class Lora(ModelLearner):
    """A learner whose trainable parameters are PEFT's LoRA matrices."""

    def __init__(self, spec: LoraSpec, backbone: Backbone, seed: int) -> None:
        """Let PEFT insert fresh LoRA matrices, A drawn by `seed` and B zero.

        Raises:
            MissingExtraError: PEFT is not installed.
            BackboneError: PEFT finds nothing to adapt in the model.
        """
        self.spec = spec
        self.adapted = insert_lora(backbone, spec, seed)
        trainable = {name: p for name, p in self.adapted.named_parameters() if p.requires_grad}
        super().__init__(backbone, trainable, seed, spec.dropout)

    def training(self, on: bool) -> None:
        """Switch the model's dropout and LoRA's own on or off, each as configured."""
        super().training(on)
        for name, module in self.backbone.model.named_modules():
            if name.endswith("lora_dropout"):
                module.train(on)

    def save(self, directory: Path, **facts: Any) -> Path:
        """Write PEFT's files and our manifest beside them, and return the directory."""
        tensors = _peft().get_peft_model_state_dict(self.adapted)
        extra = {PEFT_CONFIG: _config_json(self.adapted, self.backbone.source)}
        return write_tensors(directory, self.backbone, "lora", self.spec, tensors, facts, extra)


def insert_lora(backbone: Backbone, spec: LoraSpec, seed: int) -> nn.Module:
    """Return PEFT's model around the backbone's, whose linear layers now carry fresh LoRA matrices.

    Raises:
        MissingExtraError: PEFT is not installed.
        BackboneError: PEFT finds nothing to adapt, or the backbone has been changed already.
    """
    peft, model = _peft(), backbone.model
    targets: Any = "all-linear" if spec.targets == ("all-linear",) else list(spec.targets) or None
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="SEQ_2_SEQ_LM" if backbone.is_encoder_decoder else "CAUSAL_LM",
    )
    begin_change(backbone, "lora")
    with torch.random.fork_rng(), _quiet():  # PEFT draws from the global generator
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:
            raise BackboneError(
                f"lora.targets = {list(spec.targets)!r}: {' '.join(str(error).split())[:200]}; name the linear layers "
                "to adapt, or give [all-linear]"
            ) from None


def _config_json(adapted: nn.Module, source: str) -> bytes:
    """Return PEFT's config as it writes it, its sets sorted so that equal runs write equal bytes."""
    with tempfile.TemporaryDirectory() as folder:
        adapted.peft_config["default"].save_pretrained(folder)
        tree = json.loads((Path(folder) / PEFT_CONFIG).read_text(encoding="utf-8"))
    targets = tree["target_modules"]
    tree |= {"base_model_name_or_path": source, "inference_mode": True}
    tree["target_modules"] = sorted(targets) if isinstance(targets, list) else targets
    return (json.dumps(tree, indent=2, sort_keys=True) + "\n").encode()


def load_lora(directory: Path, saved: SavedBaseline, backbone: Backbone) -> None:
    """Let PEFT put saved LoRA matrices into a fresh copy of the backbone that they were learned on.

    Raises:
        MissingExtraError: PEFT is not installed.
        ArtifactError: damaged, or learned on another backbone.
    """
    check_belongs(saved, backbone)
    peft = _peft()
    read_stored(directory, saved)  # whole, before PEFT looks for the files, on the hub too
    begin_change(backbone, "lora")
    try:
        with _quiet():
            adapted = peft.PeftModel.from_pretrained(backbone.model, str(directory))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{directory / PEFT_CONFIG} does not fit the adapter ({said}); {REFETCH}") from None
    read_changes(directory, saved, peft.get_peft_model_state_dict(adapted))  # names, shapes and digest are right
    backbone.model.eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep PEFT 0.21's use of names that Transformers 5.23 deprecates to itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError:
        raise MissingExtraError("method 'lora' needs peft: pip install 'foreword[lora]'") from None
    return peft
