"""One answer that a vLLM server makes: the request, and its tokens as pieces, cut as the local engine cuts them."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from foreword.engines.prefix_files import PrefixFile
from foreword.engines.vllm_wire import Chunk, body_for
from foreword.serve.request import FinishReason, Piece, Request, Ticket
from foreword.serve.text import TextStream


@dataclass(eq=False)
class RemoteRow:
    """One of a request's n answers.

    Attributes:
        ticket: whose it is; `index` which of its answers.
        source: token ids of the text.
        limit: most new tokens.
        seed: of this answer.
        text_format: that its text was put into.
        prefix: its foreword's file once it is known, None for the plain backbone.
        made: new tokens so far; `text` is None before the first.
    """

    ticket: Ticket
    index: int
    source: tuple[int, ...]
    limit: int
    seed: int
    text_format: str | None = None
    prefix: PrefixFile | None = None
    made: int = 0
    text: TextStream | None = None

    @property
    def request(self) -> Request:
        """What was asked for."""
        return self.ticket.request

    @property
    def cost(self) -> int:
        """Tokens that the row may take: what its turn in the queue is charged."""
        return len(self.source) + self.limit

    @property
    def key(self) -> str | None:
        """What chooses its server."""
        return None if self.prefix is None else self.prefix.digest

    def body(self, bos: int | None, scope: str) -> dict:
        """Return the row as a request to vLLM; a leading BOS goes where the prefix begins with one already."""
        ids = self.source
        if self.prefix is not None and self.prefix.head.includes_bos and ids[:1] == (bos,):
            ids = ids[1:]
        return body_for(self.request, ids, self.prefix, self.limit, self.seed, scope)


@dataclass
class Writer:
    """Turns a row's chunks into pieces: whole characters, stop strings, and the reason of its end."""

    tokenizer: PreTrainedTokenizerBase
    ending: list[int] = field(default_factory=list)

    def pieces(self, row: RemoteRow, chunk: Chunk) -> list[Piece]:
        """Return a chunk's pieces; none follows one with a finish reason, whatever else the chunk holds."""
        made: list[Piece] = []
        for at, token in enumerate(chunk.tokens):
            finish = chunk.finish if at + 1 == len(chunk.tokens) else None
            told = chunk.logprobs[at : at + 1]
            made.append(self._piece(row, token, told, finish))
            if made[-1].finish_reason is not None:
                return made
        if not chunk.tokens and chunk.finish is not None:
            text = row.text.finish() if row.text is not None else ""
            made.append(Piece(row.index, (), text, (), _reason(chunk.finish)))
        return made

    def _piece(self, row: RemoteRow, token: int, told: tuple, finish: str | None) -> Piece:
        request = row.request
        row.made += 1
        row.text = row.text or TextStream(self.tokenizer, request.stop, strip=row.text_format is not None)
        armed = row.made >= request.min_tokens
        text = row.text.push(token, armed)
        ends = finish == "stop" or (armed and not request.ignore_eos and token in self.ending)
        if row.text.stop is None and not ends and finish is None and row.made < row.limit:
            return Piece(row.index, (token,), text, told)
        if row.text.stop is None:
            text += row.text.finish()
        stops = ends or row.text.stop is not None
        return Piece(row.index, (token,), text, told, "stop" if stops else _reason(finish or "length"), row.text.stop)


def _reason(finish: str) -> FinishReason:
    """Return our name of vLLM's finish reason; what is neither a stop nor a limit is an error."""
    return finish if finish in ("stop", "length") else "error"  # type: ignore[return-value]
