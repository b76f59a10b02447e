"""The artefact: a saved soft prompt in one directory, ours and PEFT's at once, here or on the hub."""

from foreword.artifact.convert import convert
from foreword.artifact.format import content_digest, content_name
from foreword.artifact.hub import HubAccess
from foreword.artifact.push import push_prompt
from foreword.artifact.store import load_prompt, save_prompt

__all__ = ["HubAccess", "content_digest", "content_name", "convert", "load_prompt", "push_prompt", "save_prompt"]
