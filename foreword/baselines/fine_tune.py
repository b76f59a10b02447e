"""Full fine-tuning: every weight of the backbone trains. The yardstick, in the same job as soft prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.artifact.directory import MANIFEST
from foreword.backbone import Backbone
from foreword.baselines.model_learner import ModelLearner, begin_change, require_float32
from foreword.baselines.saved import describe
from foreword.data.files import write_atomic


@dataclass(frozen=True)
class FineTuneSpec:
    """How a backbone is fine-tuned; `dropout` runs the model's own (GPT-2's is 0.1), as Li & Liang's code does."""

    dropout: bool = True

    @property
    def title(self) -> str:
        """A short name."""
        return "fine_tune"


class FineTune(ModelLearner):
    """A learner whose trainable parameters are all of the backbone's own weights."""

    def __init__(self, spec: FineTuneSpec, backbone: Backbone, seed: int) -> None:
        """Thaw the backbone and seed its dropout.

        Raises:
            BackboneError: the weights are quantised or not float32, so small updates would be lost.
        """
        require_float32(backbone, "fine_tune")
        begin_change(backbone, "fine_tune")
        self.spec = spec
        super().__init__(backbone, dict(backbone.model.named_parameters()), seed, spec.dropout)

    def save(self, directory: Path, **facts: Any) -> Path:
        """Write the model and its tokenizer as an ordinary Transformers directory and return it."""
        self.training(False)
        self.backbone.model.save_pretrained(directory)
        self.backbone.tokenizer.save_pretrained(directory)
        saved = describe(self.backbone, "fine_tune", self.spec, **facts)
        write_atomic(Path(directory) / MANIFEST, saved.to_json())
        return directory
