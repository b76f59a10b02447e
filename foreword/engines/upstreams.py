"""The vLLM servers behind a gateway: which of them a request goes to, and its stream from there.

A prefix has a home, the server that a hash of both ranks first (rendezvous hashing: Thaler & Ravishankar 1998), so its
blocks are cached in one place. A home that has more than its share of the rows passes them on to the next in rank
(consistent hashing with bounded loads: Mirrokni, Thorup & Zadimoghaddam 2016). Requests without a prefix go where the
fewest rows are.
"""

import contextlib
import hashlib
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from foreword.engines.vllm_wire import Chunk, UpstreamError, UpstreamsDown, message_of, read_event
from foreword.errors import ConfigError

SHARE = 1.25
"""A server takes at most this many times the mean of all servers' rows before a prefix moves on."""
DOWN_SEC = 5.0
"""How long a server that could not be reached is asked last."""
CONNECT_SEC = 5.0
BUSY = (429, 502, 503, 504)
"""Answers that mean "not now" or "not here"; another server is asked."""


@dataclass(eq=False)
class Server:
    """One vLLM server: its address, rows under way there, and until when it is asked last (monotonic seconds)."""

    url: str
    rows: int = 0
    down_until_sec: float = 0.0
    answered: int = field(default=0)

    def rank(self, key: str) -> bytes:
        """Return a number that is this server's and the key's alone; the highest is the key's home."""
        return hashlib.sha256(f"{self.url} {key}".encode()).digest()


class Upstreams:
    """All servers. Used by one event loop only."""

    def __init__(self, urls: Sequence[str], key: str | None = None) -> None:
        """Name the servers; `key` is their API key.

        Raises:
            ConfigError: no server, one named twice, or an address that is none.
        """
        if not urls:
            raise ConfigError("vllm is empty; give the address of at least one vLLM server: --vllm http://HOST:PORT")
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ConfigError(f"vllm = {url!r} must begin with http:// or https://")
        self.servers = [Server(url.rstrip("/").removesuffix("/v1")) for url in urls]
        if len({server.url for server in self.servers}) < len(self.servers):
            raise ConfigError("vllm names a server twice; name each once")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> "Upstreams":
        """Open the connections' pool. No proxy of the environment comes between."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        timeout = httpx.Timeout(None, connect=CONNECT_SEC)
        self._client = httpx.AsyncClient(headers=self._headers, limits=limits, timeout=timeout, trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self._client.aclose()

    def order(self, key: str | None) -> list[Server]:
        """Return the servers in the order in which a request is offered to them; `key` is its prefix's."""
        now = time.monotonic()
        if key is None:
            ranked = sorted(self.servers, key=lambda server: server.rows)
        else:
            most = math.ceil(SHARE * (sum(server.rows for server in self.servers) + 1) / len(self.servers))
            ranked = sorted(self.servers, key=lambda server: server.rank(key), reverse=True)
            ranked.sort(key=lambda server: server.rows >= most)
        return sorted(ranked, key=lambda server: server.down_until_sec > now)

    async def stream(self, key: str | None, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        """Yield the events of one answer; leaving early ends the request there.

        A server that cannot be reached or is full passes the request on, as long as nothing has come from it.

        Raises:
            UpstreamsDown: no server takes it now.
            UpstreamError: one refuses it, or the stream breaks.
        """
        why = "no vLLM server"
        for server in self.order(key):
            begun = False
            server.rows += 1
            try:
                async with contextlib.aclosing(self._ask(server, body)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                return
            except (httpx.TransportError, _Busy) as error:
                server.down_until_sec = time.monotonic() + DOWN_SEC
                why = f"{type(error).__name__.strip('_')}: {error}"
                if begun:
                    raise UpstreamError(f"the vLLM server broke off in the middle of an answer ({why})") from None
            finally:
                server.rows -= 1
        text = f"none of {len(self.servers)} vLLM servers takes requests now ({why}); try again"
        raise UpstreamsDown(text, DOWN_SEC)

    async def _ask(self, server: Server, body: dict[str, Any]) -> AsyncIterator[Chunk]:
        async with self._client.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                _refuse(answer)
            server.down_until_sec = 0.0
            server.answered += 1
            async with contextlib.aclosing(_lines(answer)) as lines:
                async for line in lines:
                    chunk = read_event(line, body.get("logprobs"))
                    if chunk is not None:
                        yield chunk


class _Busy(Exception):
    """A server answered, but takes no request now."""


async def _lines(answer: httpx.Response) -> AsyncIterator[str]:
    """Yield the lines of a stream. httpx's own also end at U+2028 and others, which may stand inside a JSON string."""
    rest = b""
    async for data in answer.aiter_bytes():
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
    yield rest.decode(errors="replace")


def _refuse(answer: httpx.Response) -> None:
    try:
        told = answer.json()
    except ValueError:
        told = {"error": answer.text[:200]}
    message = message_of(told) if isinstance(told, dict) else str(told)[:200]
    if answer.status_code in BUSY:
        raise _Busy(f"status {answer.status_code}: {message}")
    raise UpstreamError(f"vLLM refused the request (status {answer.status_code}: {message})")
