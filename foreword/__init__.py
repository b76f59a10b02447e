"""Foreword: learned prefixes and prompts in front of a text, for a language model that stays frozen.

The whole public API, loaded when a name is first used, so that `import foreword` costs no import of PyTorch.
"""

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

# name -> the module that holds it: verbs first, nouns after them, in the order of the flow
_HOMES = {
    "load_backbone": "foreword.backbone",
    "wrap_backbone": "foreword.backbone",
    "bundled_backbones": "foreword.backbone",
    "get_task": "foreword.tasks",
    "make_prompt": "foreword.prompts.soft_prompt",
    "initialise": "foreword.prompts.init",
    "compile_prompt": "foreword.prompts.soft_prompt",
    "train": "foreword.train.job",
    "resume": "foreword.train.job",
    "train_prompt": "foreword.train.job",
    "save_prompt": "foreword.artifact",
    "load_prompt": "foreword.artifact",
    "push_prompt": "foreword.artifact",
    "generate": "foreword.generate",
    "logits": "foreword.generate",
    "evaluate": "foreword.evaluate.job",
    "examine": "foreword.doctor",
    "inspect_prompt": "foreword.inspect.job",
    "concatenate": "foreword.compose.combine",
    "average": "foreword.compose.combine",
    "Ensemble": "foreword.compose.ensemble",
    "Backbone": "foreword.backbone",
    "Geometry": "foreword.backbone",
    "PromptSpec": "foreword.prompts.spec",
    "InitSpec": "foreword.prompts.spec",
    "SoftPrompt": "foreword.prompts.soft_prompt",
    "PrefixKV": "foreword.prompts.bank",
    "RunConfig": "foreword.train.run_config",
    "TrainResult": "foreword.train.run",
    "Task": "foreword.tasks",
    "ForewordError": "foreword.errors",
}

__all__ = ["__version__", *_HOMES]


class _Package(types.ModuleType):
    """The package's own type: a verb (`fw.train`) is not overwritten by the subpackage of the same name.

    Python binds a subpackage on its parent when it is first imported. `from foreword.train.job import ...` is not
    touched by this; `import foreword.train.job as job` would meet the verb, so the code never writes that.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    """Return a public name, importing its module now (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'foreword' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, those not yet imported included."""
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
