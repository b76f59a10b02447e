"""The toy job on disk, made once."""

import pytest
from toy import save_backbone, save_task


@pytest.fixture(scope="session")
def saved_llama(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def toy_task(tmp_path_factory):
    return save_task(tmp_path_factory.mktemp("task"))
