"""From what a client wrote to what the engine takes: a chat's messages become one text, fields become `Request`s."""

from collections.abc import Sequence
from typing import Any

from foreword.backbone import Backbone
from foreword.serve.catalog import Entry
from foreword.serve.faults import ApiError, bad_field
from foreword.serve.protocol import ChatRequest, CompletionRequest, Message, Sampling
from foreword.serve.request import Request
from foreword.serve.request import Sampling as Chosen
from foreword.serve.service import Service
from foreword.serve.tenants import Tenant

Asked = CompletionRequest | ChatRequest


def requests_of(service: Service, tenant: Tenant, asked: Asked, *, priority: int = 0) -> list[Request]:
    """Return one engine request for each prompt of an HTTP request.

    Raises:
        ApiError: 400 a limit of the server is passed, 404 no such foreword.
    """
    entry = service.find(tenant, asked.model)
    if isinstance(asked, ChatRequest):
        prompts, limit = [chat_prompt(service.backbone, entry, asked.messages)], asked.max_new
    else:
        prompts = [tuple(p) if isinstance(p, list) else p for p in asked.prompts]
        limit = asked.max_tokens
    _check(service, prompts, asked.n or 1)
    shared: dict[str, Any] = {
        "foreword": entry.id if entry else None, "max_tokens": limit, "sampling": chosen(asked), "stop": asked.stops,
        "n": asked.n or 1, "logprobs": asked.top_logprobs_wanted, "ignore_eos": bool(asked.ignore_eos),
        "min_tokens": asked.min_tokens or 0, "tenant": tenant.name, "priority": priority,
        "deadline_sec": min(asked.deadline_sec or service.wall.deadline_sec, service.wall.deadline_sec),
    }
    return [Request(prompt, **shared) for prompt in prompts]


def chosen(asked: Sampling) -> Chosen:
    """Return how tokens are chosen; OpenAI's default temperature is 1, and a `top_k` of -1 is none, as vLLM has it."""
    return Chosen(
        temperature=1.0 if asked.temperature is None else float(asked.temperature),
        top_k=max(asked.top_k or 0, 0),
        top_p=1.0 if asked.top_p is None else float(asked.top_p),
        min_p=float(asked.min_p or 0.0),
        seed=asked.seed,
        presence_penalty=float(asked.presence_penalty or 0.0),
        frequency_penalty=float(asked.frequency_penalty or 0.0),
        repetition_penalty=float(asked.repetition_penalty or 1.0),
        logit_bias={int(token): float(bias) for token, bias in (asked.logit_bias or {}).items()},
    )


def chat_prompt(backbone: Backbone, entry: Entry | None, messages: Sequence[Message]) -> str | tuple[int, ...]:
    """Return a chat as the model takes it.

    The plain backbone gets its own chat template, if it has one. A foreword was learned on texts without a template,
    so it gets the messages' texts, one a line: one user message is exactly its input.
    """
    tokenizer = backbone.tokenizer
    if entry is None and getattr(tokenizer, "chat_template", None):
        turns = [{"role": m.role.replace("developer", "system"), "content": m.text} for m in messages]
        try:
            ids = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
        except Exception as error:  # a template is a program of the model's author; what it refuses, it says
            message = f"the model's chat template refuses them ({' '.join(str(error).split())})"
            raise bad_field("messages", f"messages: {message}; change their roles or order") from None
        return tuple(ids)
    return "\n".join(message.text for message in messages)


def _check(service: Service, prompts: Sequence[str | tuple[int, ...]], n: int) -> None:
    wall, chars = service.wall, sum(len(prompt) for prompt in prompts)
    if len(prompts) > wall.prompts:
        raise bad_field("prompt", f"prompt has {len(prompts)} texts, the server takes {wall.prompts}; send fewer")
    if len(prompts) * n > wall.rows:
        raise bad_field("n", f"prompts times n = {len(prompts) * n}, the server takes {wall.rows}; ask for fewer")
    if chars > wall.prompt_chars:
        raise ApiError(413, f"prompt has {chars:,} characters, the server takes {wall.prompt_chars:,}; shorten it",
                       param="prompt", code="too_large")
