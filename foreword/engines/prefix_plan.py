"""What vLLM's scheduler is told of prefixes: which positions to load for a request, and which requests to refuse.

Plain Python over vLLM's request objects, imported into vLLM's scheduler process. Nothing here may raise there: one
exception in the scheduler ends the engine with every request in it. So a request that cannot be served is *refused*: it
claims a load that the workers report as failed, and vLLM ends that request alone with an error.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword.engines.prefix_files import PrefixHead, digest_of, read_head
from foreword.errors import ArtifactError

HEADS_KEPT = 65_536
"""Heads of files in memory, some hundred bytes each."""


@dataclass(frozen=True)
class Load:
    """Positions `start` to `end` of a prefix, to be written into a request's blocks."""

    digest: str
    start: int
    end: int
    block_ids: tuple[int, ...]

    def slots(self, block_size: int) -> list[int]:
        """Return the place in the paged cache of each position."""
        at = range(self.start, self.end)
        return [self.block_ids[p // block_size] * block_size + p % block_size for p in at]

    def written_blocks(self, block_size: int) -> set[int]:
        """Return the blocks that the load writes to; those before them came from the cache and are sound."""
        return set(self.block_ids[self.start // block_size : -(-self.end // block_size)])


@dataclass
class Plan:
    """One step's work for the workers.

    Attributes:
        loads: prefixes to write before the step runs.
        refused: ids of requests to report as failed.
    """

    loads: list[Load] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """The answer to "how many tokens can you load for this request".

    Attributes:
        tokens: to be loaded after those that vLLM's own cache holds.
        digest, length: of the prefix; "" and 0 without one.
        why_not: why the request is refused, if it is.
    """

    tokens: int
    digest: str = ""
    length: int = 0
    why_not: str | None = None


class Planner:
    """The scheduler's side of the connector, without vLLM.

    Attributes:
        folder: where the prefix files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._heads: OrderedDict[str, PrefixHead] = OrderedDict()
        self._claims: dict[str, Claim] = {}
        self._plan = Plan()

    def claim(self, request: Any, computed: int) -> Claim:
        """Return what to load for a request of which vLLM's own cache holds the first `computed` tokens.

        A refused request claims all the rest of its prompt.
        """
        try:
            digest = digest_of(request.cache_salt)
            length = self._length(request, digest) if digest else 0
            made = Claim(max(0, length - computed), digest or "", length)
        except Exception as error:  # also of kinds not thought of: see the module's text
            made = Claim(request.num_tokens - computed, why_not=f"{type(error).__name__}: {error}")
        self._claims[request.request_id] = made
        return made

    def allocated(self, request: Any, block_ids: Sequence[int], tokens: int) -> None:
        """Note that a request got its blocks, and that the last `tokens` of its known ones are ours to fill."""
        claim = self._claims.pop(request.request_id, None)
        if claim is None or tokens <= 0:
            return
        if claim.why_not is not None:
            self._plan.refused.append(request.request_id)
            return
        self._plan.loads.append(Load(claim.digest, claim.length - tokens, claim.length, tuple(block_ids)))

    def forget(self, request_id: str) -> None:
        """Drop what is known of a request that has ended."""
        self._claims.pop(request_id, None)

    def take(self) -> Plan:
        """Return the work of this step and begin the next."""
        made, self._plan = self._plan, Plan()
        return made

    def _length(self, request: Any, digest: str) -> int:
        """Return P of the request's prefix.

        Raises:
            ArtifactError: the request cannot be served; the message says what to change.
        """
        _check_kind(request)
        head = self._head(digest)
        ids = request.prompt_token_ids
        if ids is None or len(ids) <= head.length:
            raise ArtifactError(f"prompt has {len(ids or ())} token ids; send {head.length} placeholders and then the "
                                "text, at least one token")
        if any(token != head.placeholder for token in ids[: head.length]):
            raise ArtifactError(f"prompt must begin with {head.length} times the placeholder {head.placeholder}")
        return head.length

    def _head(self, digest: str) -> PrefixHead:
        head = self._heads.get(digest)
        if head is None:
            self._heads[digest] = head = read_head(self.folder, digest)
            if len(self._heads) > HEADS_KEPT:
                self._heads.popitem(last=False)
        return head


def _check_kind(request: Any) -> None:
    """Refuse what would run the placeholders as text: vLLM then ignores loaded tokens."""
    if request.sampling_params is None:
        raise ArtifactError("pooling reads every position, and those of a prefix have no text; leave cache_salt out")
    if request.sampling_params.prompt_logprobs is not None:
        raise ArtifactError("prompt_logprobs of a request with a prefix would score placeholders; leave it out")
