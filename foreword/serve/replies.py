"""The shapes of answers, for the OpenAPI document; the bodies themselves are built in answers.py and the routes."""

from typing import Any

from pydantic import BaseModel


class Fault(BaseModel):
    """What is wrong: the message names the field, the value and the fix."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every answer that is not 2xx."""

    error: Fault


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionReply(BaseModel):
    """OpenAI's completion."""

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: Usage


class ChatReply(CompletionReply):
    """OpenAI's chat completion."""


class ModelReply(BaseModel):
    """One model: the backbone, or a foreword on it."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(BaseModel):
    """All that the key may use."""

    object: str
    data: list[ModelReply]


class ForewordReply(BaseModel):
    """A foreword in the store."""

    id: str
    object: str
    version: str
    owned_by: str
    created: int
    kind: str | None
    length: int | None
    num_bytes: int | None
    text_format: str | None
    state: str
    pinned: bool
    rows: int


class ForewordList(BaseModel):
    """A page of forewords; `after` of the next page is the last one's id."""

    object: str
    data: list[ForewordReply]
    has_more: bool


class Deleted(BaseModel):
    """What is gone."""

    id: str
    object: str
    deleted: bool


class FileReply(BaseModel):
    """An uploaded or written file."""

    id: str
    object: str
    bytes: int
    created_at: int
    filename: str
    purpose: str


class BatchReply(BaseModel):
    """A batch: OpenAI's fields."""

    id: str
    object: str
    endpoint: str
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    completed_at: int | None
    request_counts: dict[str, int]
    errors: dict[str, Any] | None
    metadata: dict[str, str] | None


def faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI entry of a route's errors."""
    return {status: {"model": ErrorReply} for status in (400, 401, 405, 408, 413, 429, 500, 503, *statuses)}
