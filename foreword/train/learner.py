"""What a training run trains: anything with parameters, prompts for the rows of a pass, and a way to be saved."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foreword.artifact import load_prompt, save_prompt
from foreword.backbone import Backbone
from foreword.prompts.init import InitReport, initialise
from foreword.prompts.soft_prompt import SoftPrompt, make_prompt
from foreword.prompts.spec import PromptSpec


class Learner(Protocol):
    """One method of learning; `is_prompt` says that every parameter of it must receive gradient."""

    is_prompt: bool
    prompt: SoftPrompt | None

    def parameters(self) -> dict[str, Tensor]:
        """Return the trainable parameters by name, always in the same order."""
        ...

    def prompts(self, count: int) -> Sequence[SoftPrompt | None]:
        """Return the prompt of each of `count` rows."""
        ...

    def training(self, on: bool) -> None:
        """Switch dropout on or off."""
        ...

    def random_state(self) -> dict[str, Tensor]:
        """Return the state of all random numbers drawn while training; empty where none are."""
        ...

    def load_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Go to a saved random state."""
        ...

    def save(self, directory: Path, **facts: Any) -> Path:
        """Write what was learned and return its directory; `facts` (recipe, scores, data_digest) go with it."""
        ...


class SeededDropout(nn.Module):
    """Dropout that draws from its own generator, so that a prompt trains alike alone, in a gang, and resumed."""

    def __init__(self, probability: float, seed: int, device: torch.device) -> None:
        super().__init__()
        self.probability = probability
        self.generator = torch.Generator(device).manual_seed(seed)

    def forward(self, values: Tensor) -> Tensor:
        """Return the values, while training with a share of them zeroed and the rest scaled up."""
        if not self.training or not self.probability:
            return values
        drawn = torch.rand(values.shape, generator=self.generator, device=values.device)
        return values * (drawn >= self.probability) / (1 - self.probability)


def _shapes(prompt: SoftPrompt) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in prompt.state_dict().items()}


class PromptLearner:
    """A learner whose trainable parameters are one soft prompt's tables; the backbone stays frozen."""

    is_prompt = True

    def __init__(self, prompt: SoftPrompt, backbone: Backbone, seed: int) -> None:
        self.prompt = prompt
        self.backbone = backbone
        prompt.dropout = SeededDropout(prompt.spec.dropout, seed, backbone.device)
        self.training(True)

    @classmethod
    def fresh(
        cls, spec: PromptSpec, backbone: Backbone, seed: int, training_ids: Sequence[Sequence[int]] = ()
    ) -> tuple["PromptLearner", InitReport]:
        """Return a learner with an initialised prompt, and the initialisation's report.

        Args:
            spec: the prompt's form.
            backbone: the frozen model.
            seed: of the initialisation and the dropout.
            training_ids: token ids of training texts, for the `data` initialisation.
        """
        prompt = make_prompt(spec, backbone)
        generator = torch.Generator().manual_seed(seed)
        if spec.init.name != "artifact":
            report = initialise(prompt, backbone, generator, training_ids=training_ids)
            return cls(prompt, backbone, seed), report
        source = load_prompt(spec.init.artifact, backbone, unfolded=spec.reparam == "mlp")
        report = initialise(prompt, backbone, generator, source=source)
        if _shapes(source) == _shapes(prompt):  # the very same form: go on with its MLP instead of fitting a new one
            prompt.load_state_dict(source.state_dict())
            kept = ", with its MLP" if spec.reparam == "mlp" else ""
            report = dataclasses.replace(report, detail=f"{report.detail}{kept}", error=0.0)
        return cls(prompt, backbone, seed), report

    def parameters(self) -> dict[str, Tensor]:
        """Return the prompt's tables (and their MLPs) by name."""
        return dict(self.prompt.named_parameters())

    def prompts(self, count: int) -> Sequence[SoftPrompt]:
        """Return the prompt for each of `count` rows."""
        return [self.prompt] * count

    def training(self, on: bool) -> None:
        """Switch the prompt's dropout on or off."""
        self.prompt.train(on)

    def random_state(self) -> dict[str, Tensor]:
        """Return the dropout generator's state, or nothing without dropout."""
        return {"dropout": self.prompt.dropout.generator.get_state()} if self.prompt.spec.dropout else {}

    def load_random_state(self, state: Mapping[str, Tensor]) -> None:
        """Go to a saved state of the dropout generator."""
        if "dropout" in state:
            self.prompt.dropout.generator.set_state(state["dropout"].cpu())

    def save(self, directory: Path, **facts: Any) -> Path:
        """Write the prompt as an artefact and return its directory."""
        self.training(False)
        return save_prompt(self.prompt, directory, self.backbone, **facts)
