"""The Hugging Face hub: fetch an artefact by id; only the files that an artefact may hold."""

import re
from dataclasses import dataclass
from pathlib import Path

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
        raise ArtifactError(f"prompt {repo_id!r} is no directory here and {reason(error)}") from None
    return Path(found)


def reason(error: Exception) -> str:
    """Return what went wrong at the hub, for the end of a message."""
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such repository, or your token may not read it; check the id and log in"
    if isinstance(error, LocalEntryNotFoundError):
        return "the hub cannot be reached and the cache has no copy; give a directory or check the network"
    return f"the hub answers: {' '.join(str(error).split())}"
