"""What a client may send: OpenAI's requests, strictly read. An unknown field is an error, not a shrug.

Fields of OpenAI's that this server cannot honour are accepted with the value that changes nothing (`tools: null`) and
refused with any other: a client that leaves them at their default works unchanged, and nobody is misled.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

MOST_CHOICES = 128
MOST_STOPS = 16
LONGEST_STOP = 512  # characters
MOST_PROMPTS = 1024
MOST_LOGPROBS = 20
LARGEST_SEED = (1 << 63) - 1
HALF_PAIR = re.compile("[\ud800-\udfff]")
LARGEST_COUNT = 1 << 20  # of tokens in one request, before the model's own limit


def _number(value: Any) -> Any:
    """JSON's true is no number, though Python's is."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Real = Annotated[float, BeforeValidator(_number)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Unit = Annotated[Real, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Penalty = Annotated[Real, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]


def _nothing(value: Any) -> None:
    if value is not None:
        raise ValueError("is not supported; leave it out, or send null")


Nothing = Annotated[None, BeforeValidator(_nothing)]
NoItems = Annotated[list[Any], Field(max_length=0)]
SMALLEST_NUCLEUS = 2.0**-126  # the least normal number of float32: only the likeliest token is in it


class Wire(BaseModel):
    """A body on the wire: no unknown fields, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @field_validator("*", mode="after")
    @classmethod
    def _whole_characters(cls, value: Any) -> Any:
        """JSON can escape half a surrogate pair, which is no character and no tokenizer takes it."""
        left = [value]
        while left:
            item = left.pop()
            if isinstance(item, str) and not item.isascii() and HALF_PAIR.search(item):
                raise ValueError("holds half a surrogate pair; send whole characters")
            if isinstance(item, dict):
                left += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                left += item
        return value


class StreamOptions(Wire):
    """How a stream ends: `include_usage` adds a last chunk with the token counts."""

    include_usage: bool = False
    include_obfuscation: bool = False

    @field_validator("include_obfuscation")
    @classmethod
    def _no_padding(cls, value: bool) -> bool:
        return _neutral("include_obfuscation", value, (False,))


class Sampling(Wire):
    """The fields that completions and chats share.

    `top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `ignore_eos` and `deadline_sec` are not OpenAI's; vLLM's
    clients know the first five.
    """

    model: Annotated[str, Field(min_length=1, max_length=256)]
    temperature: Annotated[Real, Field(ge=0.0, le=2.0, allow_inf_nan=False)] | None = None
    top_p: Unit | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 20)] | None = None
    min_p: Unit | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-LARGEST_SEED - 1, le=LARGEST_SEED)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[Real, Field(gt=0.0, le=10.0, allow_inf_nan=False)] | None = None
    logit_bias: dict[str, Annotated[Real, Field(ge=-100.0, le=100.0, allow_inf_nan=False)]] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=LARGEST_COUNT)] | None = None
    ignore_eos: bool | None = None
    deadline_sec: Annotated[Real, Field(gt=0.0, le=86400.0, allow_inf_nan=False)] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None

    @field_validator("top_p")
    @classmethod
    def _nucleus(cls, value: float | None) -> float | None:
        """OpenAI's 0 is a nucleus of one token; the engine's own must be above 0."""
        return SMALLEST_NUCLEUS if value == 0 else value

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MOST_STOPS:
            raise ValueError(f"{len(stops)} stop strings; give at most {MOST_STOPS}")
        if not all(0 < len(text) <= LONGEST_STOP for text in stops):
            raise ValueError(f"a stop string has 1 to {LONGEST_STOP} characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _bias(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if any(not key.isascii() or not key.isdigit() or len(key) > 9 for key in value or {}):
            raise ValueError('its keys are token ids, as in {"50256": -100}')
        if len(value or {}) > MOST_PROMPTS:
            raise ValueError(f"give at most {MOST_PROMPTS} biases")
        return value

    @model_validator(mode="after")
    def _stream_options(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream = true; set it, or leave stream_options out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, none for an empty or missing field."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether the last chunk of the stream is to hold the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(Sampling):
    """`POST /v1/completions`. `prompt`: a text, token ids, or a list of either."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    max_tokens: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    suffix: str | None = None

    @field_validator("prompt")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        if isinstance(value, list) and not value:
            raise ValueError("must hold at least one prompt; give a text")
        if isinstance(value, list) and not isinstance(value[0], int) and len(value) > MOST_PROMPTS:
            raise ValueError(f"{len(value)} prompts; give at most {MOST_PROMPTS} in one request")
        if isinstance(value, list) and any(item == [] for item in value):
            raise ValueError("holds an empty list of token ids; give at least one token")
        return value

    @field_validator("suffix")
    @classmethod
    def _no_suffix(cls, value: str | None) -> str | None:
        return _neutral("suffix", value, (None, ""))

    @model_validator(mode="after")
    def _choices(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n or 1):
            raise ValueError(f"best_of = {self.best_of} needs ranking, which is not done here; leave it out and set n")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs would score the prompt, which is not done here; leave one of them out")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, one or more."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

    @property
    def top_logprobs_wanted(self) -> int | None:
        """How many alternatives of each token to tell; None for no log probabilities at all."""
        return self.logprobs


class TextPart(Wire):
    """A piece of a message: text; images and sound are not for these models."""

    type: Literal["text"]
    text: str


class Message(Wire):
    """One turn of a chat. The answer's own message may come back as it is, with all the fields that clients add."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: Annotated[str, Field(max_length=256)] | None = None
    refusal: Nothing = None
    tool_calls: NoItems | None = None
    function_call: Nothing = None
    audio: Nothing = None
    annotations: NoItems | None = None

    @property
    def text(self) -> str:
        """The message's text, its parts joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(Wire):
    """What the answer looks like: free text, nothing else."""

    type: Literal["text"]


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_PROMPTS)]
    max_tokens: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: NoItems | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    functions: NoItems | None = None
    function_call: Literal["none", "auto"] | None = None
    reasoning_effort: Nothing = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None

    @model_validator(mode="after")
    def _lengths(self) -> "ChatRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs = true; set it, or leave top_logprobs out")
        return self

    @property
    def max_new(self) -> int | None:
        """The limit of new tokens; None for as many as fit."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        """How many alternatives of each token to tell; None for no log probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompareRequest(Wire):
    """`POST /v1/compare`: one text, several models, one stream: what the playground sends."""

    models: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(min_length=1, max_length=64)]
    prompt: Annotated[str, Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] = 64
    temperature: Annotated[Real, Field(ge=0.0, le=2.0, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=-LARGEST_SEED - 1, le=LARGEST_SEED)] | None = None

    @field_validator("models")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("names a model twice; name each once")
        return value


class HubForeword(Wire):
    """`POST /v1/forewords` as JSON: take a foreword from the hub, if the server's list allows the id."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    source: Annotated[str, Field(min_length=3, max_length=192, pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")]
    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class BatchRequest(Wire):
    """`POST /v1/batches`: answer every line of an uploaded file."""

    input_file_id: Annotated[str, Field(min_length=1, max_length=64)]
    endpoint: Literal["/v1/completions", "/v1/chat/completions"]
    completion_window: Literal["24h"] = "24h"
    metadata: dict[str, str] | None = None


class BatchLine(Wire):
    """One line of a batch's input file."""

    custom_id: Annotated[str, Field(min_length=1, max_length=256)]
    method: Literal["POST"] = "POST"
    url: Literal["/v1/completions", "/v1/chat/completions"]
    body: dict[str, Any]


def _neutral(field: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """Return a value that changes nothing, or refuse it."""
    if value not in allowed:
        raise ValueError(f"{field} is not supported; leave it out")
    return value


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it: an infinite log probability becomes the least that OpenAI's clients show."""
    return value if math.isfinite(value) else -9999.0
