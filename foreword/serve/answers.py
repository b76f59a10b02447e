"""What a client gets: the engine's pieces and answers in OpenAI's formats."""

import math
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from foreword.backbone import Backbone
from foreword.serve.faults import ApiError
from foreword.serve.protocol import ChatRequest, finite
from foreword.serve.request import Answer, Piece, Ticket, TokenLogprob

ENDS = ("stop", "length")
"""OpenAI's finish reasons that this engine has; every other end of an answer is an error."""


@dataclass
class Wording:
    """One HTTP answer in the making: its id, its format, and where each choice's text has got to.

    Attributes:
        chat: chat format instead of completion format.
        n: answers a prompt.
        echoes: by prompt, the text that each of its choices begins with.
        wants_usage: a stream ends with a chunk that tells the token counts.
    """

    backbone: Backbone
    model: str
    created: int
    chat: bool
    n: int
    echoes: Sequence[str] = ()
    wants_usage: bool = False
    id: str = ""
    _offsets: dict[int, int] = field(default_factory=dict)
    _begun: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.id = self.id or f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"

    def whole(self, answers: Sequence[Sequence[Answer]], tickets: Sequence[Ticket]) -> dict[str, Any]:
        """Return the body of an answer that is not streamed.

        Raises:
            ApiError: an answer ended neither at its stop nor at its length.
        """
        for row in answers:
            for answer in row:
                check_end(answer)
        choices = [
            self._choice(number * self.n + answer.index, self._echo(number) + answer.text, answer)
            for number, row in enumerate(answers)
            for answer in row
        ]
        return {**self._head("chat.completion" if self.chat else "text_completion"), "choices": choices,
                "usage": usage(tickets)}

    def chunk(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """Return the stream's chunks for a piece of prompt `number`'s answer: none, one, or two where it begins.

        Raises:
            ApiError: the answer ended neither at its stop nor at its length.
        """
        if piece.finish_reason is not None:
            check_end(piece)
        index = number * self.n + piece.index
        first = index not in self._begun
        self._begun.add(index)
        if self.chat:
            return self._chat_chunks(index, piece, first)
        text = (self._echo(number) if first else "") + piece.text
        if not text and piece.finish_reason is None and not piece.logprobs:
            return []
        return [self._chunk({**self._choice(index, text, piece)})]

    def last(self, tickets: Sequence[Ticket]) -> dict[str, Any] | None:
        """Return the chunk with the token counts, if the client asked for it."""
        if not self.wants_usage:
            return None
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": usage(tickets)}

    def _chat_chunks(self, index: int, piece: Piece, first: bool) -> list[dict[str, Any]]:
        made = []
        if first:
            made.append(self._chunk(_delta(index, {"role": "assistant", "content": ""}, None)))
        logprobs = self._chat_logprobs(piece) if piece.logprobs else None
        if piece.text or piece.finish_reason or logprobs:
            delta = {"content": piece.text} if piece.text else {}
            made.append(self._chunk({**_delta(index, delta, piece.finish_reason), "logprobs": logprobs}))
        return made

    def _choice(self, index: int, text: str, made: Answer | Piece) -> dict[str, Any]:
        if self.chat:
            logprobs = self._chat_logprobs(made) if made.logprobs else None
            message = {"role": "assistant", "content": text, "refusal": None}
            return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": made.finish_reason}
        logprobs = self._text_logprobs(index, made) if made.logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": made.finish_reason}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        made = {**self._head("chat.completion.chunk" if self.chat else "text_completion"), "choices": [choice]}
        return {**made, "usage": None} if self.wants_usage else made

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _echo(self, number: int) -> str:
        return self.echoes[number] if self.echoes else ""

    def _chat_logprobs(self, made: Answer | Piece) -> dict[str, Any]:
        content = [
            {**self._named(entry.token, entry.logprob), "top_logprobs": [self._named(*top) for top in entry.top]}
            for entry in _told(made)
        ]
        return {"content": content, "refusal": None}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        text = token_text(self.backbone, token)
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}

    def _text_logprobs(self, index: int, made: Answer | Piece) -> dict[str, Any]:
        told, at = _told(made), self._offsets.get(index, 0)
        texts = [token_text(self.backbone, entry.token) for entry in told]
        offsets = []
        for text in texts:
            offsets.append(at)
            at += len(text)
        self._offsets[index] = at
        tops = [{token_text(self.backbone, token): finite(value) for token, value in entry.top} for entry in told]
        return {"tokens": texts, "token_logprobs": [finite(entry.logprob) for entry in told], "top_logprobs": tops,
                "text_offset": offsets}


def check_end(made: Answer | Piece) -> None:
    """Let an answer, or its last piece, pass that ended as OpenAI's answers do.

    Raises:
        ApiError: 504 its deadline passed, 503 the server stopped or what it asks is not to be had now, 500 the fault
            is here.
    """
    reason, error = made.finish_reason, made.error
    if reason in ENDS:
        return
    if reason == "deadline":
        raise ApiError(504, "the answer was not finished in time; ask for fewer tokens, or raise deadline_sec",
                       param="deadline_sec", code="deadline_passed")
    if reason == "cancelled":
        raise ApiError(503, "the server stopped before the answer was finished; ask again", code="cancelled",
                       headers={"Retry-After": "1"})
    if made.retry_after_sec is not None:
        raise ApiError(503, f"the answer could not be made now: {error}", code="unavailable",
                       headers={"Retry-After": str(max(1, math.ceil(made.retry_after_sec)))})
    raise ApiError(500, f"the answer could not be made: {error or 'no reason given'}", code="answer_failed")


def token_text(backbone: Backbone, token: int) -> str:
    """Return one token's text; half a character shows as the replacement character."""
    text = backbone.tokenizer.decode([token], skip_special_tokens=False)
    piece = backbone.tokenizer.convert_ids_to_tokens(token)
    leads = isinstance(piece, str) and piece.startswith("▁") and not text.startswith(" ")
    return f" {text}" if leads else text


def usage(tickets: Iterable[Ticket]) -> dict[str, int]:
    """Return the token counts of all answers; a foreword's virtual tokens cost nothing and are not counted."""
    found = [ticket.usage for ticket in tickets]
    prompt, made = sum(u.prompt for u in found), sum(u.completion for u in found)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _told(made: Answer | Piece) -> Sequence[TokenLogprob]:
    """Return the tokens whose log probabilities are told: all but the EOS that ended the answer."""
    ended = made.finish_reason == "stop" and made.stop is None
    return made.logprobs[:-1] if ended else made.logprobs


def _delta(index: int, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def is_chat(asked: object) -> bool:
    """Return whether a request is a chat."""
    return isinstance(asked, ChatRequest)
