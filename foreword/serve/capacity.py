"""What one engine may hold at a time: rows, tokens, bytes, and how long its queue may grow."""

import dataclasses
from dataclasses import dataclass

from foreword.errors import ConfigError


@dataclass(frozen=True)
class Capacity:
    """The limits of one engine. What does not fit waits in a bounded queue; what can never fit is refused at once.

    Attributes:
        rows: most rows that decode together.
        step_tokens: most new tokens in one pass; long texts are read in pieces of this, so that nobody else waits.
        cache_bytes: of the rows' own keys and values (text and answer, not prefixes). A row's place is reserved
            when it starts, so no row is ever thrown out to make room.
        prefix_bytes: for copies of running rows' prefixes, which stand side by side so that one product meets many;
            where they do not fit, rows run as before, but slower.
        queued: most rows that wait, over all tenants.
        queued_per_tenant: most rows that one tenant may have waiting.
        new_tokens: most tokens that one request may ask for.
        choices: most answers (`n`) of one request.
        logprobs: most alternatives that a token is told with.
    """

    rows: int = 128
    step_tokens: int = 512
    cache_bytes: int = 2 << 30
    prefix_bytes: int = 512 << 20
    queued: int = 4096
    queued_per_tenant: int = 4096
    new_tokens: int = 4096
    choices: int = 128
    logprobs: int = 20

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"serve.{name} = {value!r} must be a whole number of at least 1")
