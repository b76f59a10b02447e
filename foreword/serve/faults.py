"""What goes wrong on the wire, in OpenAI's error format; each message names the field, the value and the fix."""

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.errors import ForewordError, nearest

KINDS = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 409: "conflict_error",
    429: "rate_limit_error", 500: "server_error", 503: "unavailable_error", 504: "timeout_error",
}
"""OpenAI's `type` by status; everything else is an `invalid_request_error`."""
LONGEST_SHOWN = 60  # characters of a wrong value that a message repeats


class ApiError(ForewordError):
    """A request that is answered with an error.

    Attributes:
        status: of the HTTP answer.
        param: the field that is wrong, None if it is not one field.
        code: a word for programs, as OpenAI's clients look at it.
        headers: of the answer, such as Retry-After (seconds).
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the answer's JSON."""
        return error_body(self.status, str(self), self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return an error in OpenAI's format."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_field(param: str, message: str) -> ApiError:
    """Return the error of a field whose value cannot work."""
    return ApiError(400, message, param=param, code="invalid_value")


def unknown_model(name: str) -> ApiError:
    """Return the one answer for a foreword that does not exist and for one that is another tenant's.

    It names nothing but what the client itself said, and no near name: those would tell what others have.
    """
    message = f"model {shown(name)} does not exist, or your key may not use it; GET /v1/models lists what it may use"
    return ApiError(404, message, param="model", code="model_not_found")


def too_busy(message: str, retry_after_sec: float, code: str = "rate_limit_exceeded") -> ApiError:
    """Return a 429 that says when to come back."""
    seconds = max(1, round(retry_after_sec + 0.5))
    return ApiError(429, message, code=code, headers={"Retry-After": str(seconds)})


def shown(value: Any) -> str:
    """Return a value as a message may repeat it: short, and on one line."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def from_validation(errors: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> ApiError:
    """Return the error of a body that pydantic refused, told by its first fault.

    Args:
        errors: pydantic's list.
        fields: the names that the body may have, for a near one.
    """
    first = min(errors, key=lambda error: _depth(error["type"]))
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    param = _path(where) or None
    value, kind = first.get("input"), first["type"]
    if isinstance(value, bytes) and not where:  # not taken for JSON: another site's page could send it unasked
        return ApiError(400, "Content-Type must be application/json; set that header", code="bad_content_type")
    if kind == "json_invalid":
        why = first.get("ctx", {}).get("error", first["msg"])
        return ApiError(400, f"the body is not JSON ({why}); mend it", code="bad_json")
    if kind == "extra_forbidden":
        hint = nearest(where[-1], fields) if len(where) == 1 else "; leave it out"
        return ApiError(400, f"field {shown(param)} is unknown{hint}", param=param, code="unknown_field")
    if kind == "missing":
        return ApiError(400, f"field {param or 'body'!r} is missing; it is required", param=param, code="missing_field")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return bad_field(param or "body", f"{param or 'body'} = {shown(value)}: {message}")


def _depth(kind: str) -> int:
    """Unknown fields first: a mistyped name explains what else is missing."""
    return 0 if kind in ("extra_forbidden", "json_invalid") else 1


def _path(where: Sequence[str]) -> str:
    """Return the place of a fault as `messages.0.role`, without the union members that pydantic puts in between."""
    kept = [part for place, part in enumerate(where) if place == 0 or part.isdigit() or part.isidentifier()]
    names = [part for part in kept if part not in ("str", "int", "list")]
    return ".".join(names)


def unknown_path(path: str) -> ApiError:
    """Return the error of a path that nothing answers at."""
    return ApiError(404, f"path {shown(path)} does not exist; GET /openapi.json lists those that do", code="not_found")
