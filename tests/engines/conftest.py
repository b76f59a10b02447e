"""A tiny backbone that lies in a directory, as servers load it."""

import pytest
from backbones import make

from foreword.backbone import load_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("backbone") / "plain", make("llama")
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return load_backbone(folder)
