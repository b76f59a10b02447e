from pathlib import Path

import pytest
from gridkit import save_labels
from toy import save_backbone


@pytest.fixture(scope="session")
def ground(tmp_path_factory) -> Path:
    """A folder with a backbone and a task, made once; grids of a test keep their store elsewhere or share this one."""
    root = tmp_path_factory.mktemp("grids")
    save_backbone(root / "backbone")
    save_labels(root / "task")
    return root
