"""What a request must be, looked at before it is queued: the message names the field, the value and the fix."""

import math
from typing import Any

from foreword.backbone import Backbone
from foreword.serve.capacity import Capacity
from foreword.serve.pool import ForewordInfo
from foreword.serve.request import Request, RequestError, Sampling


def check_request(request: Request, capacity: Capacity, backbone: Backbone) -> None:
    """Raise where a field can never be served.

    Raises:
        RequestError: it names the field, the value and the fix.
    """
    vocabulary = backbone.model.get_input_embeddings().weight.shape[0]
    _check_prompt(request.prompt, vocabulary)
    _whole("n", request.n, 1, capacity.choices)
    if request.max_tokens is not None:
        _whole("max_tokens", request.max_tokens, 1, capacity.new_tokens)
    _whole("min_tokens", request.min_tokens, 0, request.max_tokens or capacity.new_tokens)
    if request.logprobs is not None:
        _whole("logprobs", request.logprobs, 0, capacity.logprobs)
    if isinstance(request.stop, str) or not all(isinstance(stop, str) and stop for stop in request.stop):
        raise RequestError(f"stop = {request.stop!r} must be a tuple of texts that are not empty", "stop")
    if request.deadline_sec is not None:
        _number("deadline_sec", request.deadline_sec, 0, math.inf, above=True)
    _check_sampling(request.sampling, vocabulary)


def new_token_limit(
    request: Request, source_len: int, info: ForewordInfo | None, backbone: Backbone, capacity: Capacity
) -> int:
    """Return how many new tokens a row may make: as asked, or as many as fit.

    Raises:
        RequestError: text, foreword and new tokens exceed the backbone's positions.
    """
    positions = backbone.geometry.max_positions
    taken = source_len + (info.length if info else 0)
    if backbone.is_encoder_decoder:  # the answer has the decoder's own positions
        if positions is not None and taken > positions:
            raise RequestError(f"prompt takes {taken} positions, the model has {positions}; shorten it", "prompt")
        taken = 0
    room = capacity.new_tokens if positions is None else positions - taken
    if room < 1:
        raise RequestError(
            f"prompt and foreword take {taken} positions, the model has {positions}; shorten the prompt", "prompt"
        )
    if request.max_tokens is not None and request.max_tokens > room:
        raise RequestError(
            f"max_tokens = {request.max_tokens}, but prompt and foreword leave {room} of the model's {positions} "
            "positions; ask for fewer, or shorten the prompt",
            "max_tokens",
        )
    return min(room, capacity.new_tokens) if request.max_tokens is None else request.max_tokens


def _check_prompt(prompt: Any, vocabulary: int) -> None:
    if isinstance(prompt, str):
        return
    if not isinstance(prompt, (tuple, list)):
        raise RequestError(f"prompt is {type(prompt).__name__}; give a text or a tuple of token ids", "prompt")
    for token in prompt:
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
            raise RequestError(f"prompt has token id {token!r}; ids are 0 to {vocabulary - 1}", "prompt")


def _check_sampling(sampling: Sampling, vocabulary: int) -> None:
    _number("sampling.temperature", sampling.temperature, 0, 100)
    _number("sampling.top_p", sampling.top_p, 0, 1, above=True)
    _number("sampling.min_p", sampling.min_p, 0, 1)
    _number("sampling.repetition_penalty", sampling.repetition_penalty, 0, 100, above=True)
    _number("sampling.presence_penalty", sampling.presence_penalty, -100, 100)
    _number("sampling.frequency_penalty", sampling.frequency_penalty, -100, 100)
    _whole("sampling.top_k", sampling.top_k, 0, 1 << 31)
    if sampling.seed is not None:
        _whole("sampling.seed", sampling.seed, -(1 << 63), (1 << 63) - 1)
    for token, bias in sampling.logit_bias.items():
        _whole("sampling.logit_bias", token, 0, vocabulary - 1)
        _number(f"sampling.logit_bias[{token}]", bias, -1e4, 1e4)


def _whole(field: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise RequestError(f"{field} = {value!r} must be a whole number from {least} to {most}", field)


def _number(field: str, value: Any, least: float, most: float, above: bool = False) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
    if not fits or (above and value == least):
        raise RequestError(f"{field} = {value!r} must be {'above' if above else 'from'} {least:g} to {most:g}", field)
