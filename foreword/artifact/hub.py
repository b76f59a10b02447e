"""The Hugging Face hub: fetch an artefact by id, and push one; only the files that an artefact may hold."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from foreword.artifact.directory import FILES
from foreword.errors import ArtifactError

# HfHubHTTPError's bases are OSError and the root error of the HTTP library, whichever one this version uses;
# RuntimeError is what a failed upload of one file becomes.
FAULTS = (HFValidationError, RuntimeError, ValueError, *HfHubHTTPError.__bases__)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class HubAccess:
    """How to reach the hub; the defaults are those of huggingface_hub (its login, its cache, its environment).

    Attributes:
        revision: branch, tag or commit.
        token: access token; None takes the stored login.
        endpoint: address of another hub.
        cache_dir: where files are kept.
        local_files_only: use what is in the cache, never the network.
    """

    revision: str | None = None
    token: str | None = None
    endpoint: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False


def is_hub_id(source: str) -> bool:
    """Return whether a string has the form `owner/name` of a hub repository."""
    return HUB_ID.fullmatch(source) is not None and not source.startswith((".", "-"))


def fetch_prompt(repo_id: str, access: HubAccess) -> Path:
    """Return the local directory of a hub repository's artefact files, downloaded if they are not in the cache.

    Raises:
        ArtifactError: no such repository or revision, no access, no network, or nothing cached when offline.
    """
    try:
        found = huggingface_hub.snapshot_download(
            repo_id,
            revision=access.revision,
            token=access.token,
            endpoint=access.endpoint,
            cache_dir=access.cache_dir,
            local_files_only=access.local_files_only,
            allow_patterns=list(FILES),
        )
    except FAULTS as error:
        raise ArtifactError(f"prompt {repo_id!r} is no directory here and {_reason(error)}") from None
    return Path(found)


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
    from foreword.artifact.store import load_prompt  # store imports this module

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
        raise ArtifactError(f"prompt {str(directory)!r} was not pushed to {repo_id!r}: {_reason(error)}") from None
    return str(commit.commit_url)


def _reason(error: Exception) -> str:
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such repository, or your token may not read it; check the id and log in"
    if isinstance(error, LocalEntryNotFoundError):
        return "the hub cannot be reached and the cache has no copy; give a directory or check the network"
    return f"the hub answers: {' '.join(str(error).split())}"
