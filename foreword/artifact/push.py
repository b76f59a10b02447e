"""Publishing: an artefact goes to the Hugging Face hub, once it has been loaded and found whole."""

from pathlib import Path
from typing import Any

import huggingface_hub

from foreword.artifact.directory import FILES
from foreword.artifact.hub import FAULTS, is_hub_id, reason
from foreword.artifact.store import load_prompt
from foreword.errors import ArtifactError


def push_prompt(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    message: str = "Upload soft prompt",
) -> str:
    """Upload a saved artefact to a hub repository, made if need be, and return the commit's address.

    Args:
        directory: as `save_prompt` wrote it; it is loaded first, so that no damaged artefact is published.
        repo_id: `owner/name`.
        private: visibility of a repository that is made; None takes the owner's default.
        token: write token; None takes the stored login.
        endpoint: address of another hub.
        message: commit message.

    Raises:
        ArtifactError: the artefact does not load, or the hub refuses.
    """
    if not is_hub_id(repo_id):
        raise ArtifactError(f"repo_id = {repo_id!r} is not of the form owner/name")
    if not Path(directory).is_dir():
        raise ArtifactError(f"prompt {str(directory)!r} is not a directory; save the prompt first")
    load_prompt(directory)
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit: Any = api.upload_folder(
            repo_id=repo_id, folder_path=directory, allow_patterns=list(FILES), commit_message=message
        )
    except FAULTS as error:
        raise ArtifactError(f"prompt {str(directory)!r} was not pushed to {repo_id!r}: {reason(error)}") from None
    return str(commit.commit_url)
