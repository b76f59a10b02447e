"""One row of ours as a request to vLLM's OpenAI server, and what its stream says as tokens of ours.

Texts, stop strings and usage are ours: vLLM is sent token ids and asked for token ids, so an answer reads the same
whichever engine made it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.engines.prefix_files import PrefixFile, salt_of
from foreword.errors import ForewordError
from foreword.serve.request import Request, TokenLogprob

TOKEN = "token_id:"
"""How vLLM writes a token in its log probabilities with `return_tokens_as_token_ids`."""


class UpstreamError(ForewordError):
    """A vLLM server did not answer as it should."""


class UpstreamsDown(UpstreamError):
    """No vLLM server can be reached or has room; the same request may succeed later.

    Attributes:
        retry_after_sec: about when.
    """

    def __init__(self, message: str, retry_after_sec: float) -> None:
        super().__init__(message)
        self.retry_after_sec = retry_after_sec


@dataclass(frozen=True)
class Chunk:
    """One event of a stream: new tokens, their log probabilities if asked for, and the reason if it is the last."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None


def scope_of(tenant: str, operator: str) -> str:
    """Return what keeps a tenant's cached blocks apart: no request's time tells of another tenant's texts.

    The operator's own requests have no scope, and neither has its name a meaning in vLLM.
    """
    return "" if tenant in ("", operator) else hashlib.sha256(tenant.encode()).hexdigest()[:16]


def body_for(
    request: Request, ids: Sequence[int], prefix: PrefixFile | None, limit: int, seed: int, scope: str = ""
) -> dict[str, Any]:
    """Return the body of `POST /v1/completions` for one answer: placeholders, token ids, and the prefix in the salt.

    Args:
        request: what the client asked for.
        ids: of the text, without the foreword.
        prefix: the foreword's file, None for the plain model.
        limit: most new tokens.
        seed: of this answer.
        scope: of the tenant.
    """
    chosen = request.sampling
    head = [] if prefix is None else [prefix.head.placeholder] * prefix.head.length
    salt = scope if prefix is None else salt_of(prefix.digest, scope)
    body: dict[str, Any] = {
        "prompt": [*head, *ids], "max_tokens": limit, "temperature": chosen.temperature, "top_p": chosen.top_p,
        "top_k": chosen.top_k, "min_p": chosen.min_p, "seed": seed, "presence_penalty": chosen.presence_penalty,
        "frequency_penalty": chosen.frequency_penalty, "repetition_penalty": chosen.repetition_penalty,
        "min_tokens": request.min_tokens, "ignore_eos": request.ignore_eos, "stream": True, "return_token_ids": True,
    }
    if chosen.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in chosen.logit_bias.items()}
    if request.logprobs is not None:
        body |= {"logprobs": request.logprobs, "return_tokens_as_token_ids": True}
    return body | ({"cache_salt": salt} if salt else {})


def read_event(line: str, alternatives: int | None) -> Chunk | None:
    """Return what a line of the stream brings; None for one that brings nothing.

    Args:
        line: as it stands in the stream.
        alternatives: how many log probabilities of other tokens were asked for; None for none at all.

    Raises:
        UpstreamError: vLLM reports an error, or the line is not what vLLM 0.32 sends.
    """
    data = line.removeprefix("data:").strip()
    if not line.startswith("data:") or data == "[DONE]":
        return None
    try:
        event = json.loads(data)
        if "error" in event:
            raise UpstreamError(f"vLLM: {message_of(event)}")
        choices = event["choices"]
        return _chunk(choices[0], alternatives) if choices else None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UpstreamError(f"vLLM sent an event that is not understood ({type(error).__name__}: {error})") from None


def message_of(body: Mapping[str, Any]) -> str:
    """Return the message in an error of vLLM's."""
    error = body.get("error", body)
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text).split())[:500]


def _chunk(choice: Mapping[str, Any], alternatives: int | None) -> Chunk:
    tokens, finish = tuple(choice.get("token_ids") or ()), choice.get("finish_reason")
    if alternatives is None:
        return Chunk(tokens, (), finish)
    told = choice.get("logprobs") or {"token_logprobs": [], "top_logprobs": []}
    entries = zip(tokens, told["token_logprobs"], told["top_logprobs"], strict=True)
    return Chunk(tokens, tuple(_logprob(*entry, alternatives) for entry in entries), finish)


def _logprob(token: int, value: float, others: Mapping[str, float] | None, alternatives: int) -> TokenLogprob:
    """Return one token's log probabilities; vLLM lists the chosen token among the likeliest, whether it is or not."""
    named = [(int(name.removeprefix(TOKEN)), float(chance)) for name, chance in (others or {}).items()]
    named.sort(key=lambda pair: -pair[1])
    return TokenLogprob(token, float(value), tuple(named[:alternatives]))
