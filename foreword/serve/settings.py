"""What a server is told: where backbone and store are, and every limit that keeps one client from the others."""

import dataclasses
from dataclasses import dataclass, field

from foreword.errors import ConfigError
from foreword.serve.capacity import Capacity


@dataclass(frozen=True)
class Wall:
    """Limits on what may arrive, checked before anything is built from it.

    Attributes:
        body_bytes: of a JSON body.
        upload_bytes: of a foreword's files, or of a batch's input file.
        prompt_chars: of all texts of one request; tokens are limited by the backbone's positions.
        prompts: texts in one request.
        rows: answers in one request: texts times `n`.
        virtual_tokens: of a stored foreword.
        receive_sec: between two pieces of a body.
        stall_sec: a client that reads nothing of its stream for so long is let go, and its rows with it.
        deadline_sec: of every request; a client may ask for less.
    """

    body_bytes: int = 4 << 20
    upload_bytes: int = 256 << 20
    prompt_chars: int = 1 << 20
    prompts: int = 256
    rows: int = 512
    virtual_tokens: int = 1024
    receive_sec: float = 30.0
    stall_sec: float = 30.0
    deadline_sec: float = 600.0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ConfigError(f"wall.{name} = {value!r} must be above 0")


@dataclass(frozen=True)
class ServeConfig:
    """One server.

    Attributes:
        backbone: directory, bundled name or hub id.
        store: directory of forewords, keys and batch files; made if it is missing.
        name: of the plain model; the backbone's last path part by default.
        host, port: where to listen; port 0 takes a free one.
        dtype, device: of the backbone.
        pool_bytes: memory for forewords.
        pin: names of the operator's forewords that are loaded at the start and stay.
        hub: ids, or `owner/*`, that `POST /v1/forewords` may fetch; none by default.
        threads: of PyTorch; None leaves its default.
        drain_sec: how long SIGTERM waits for what is under way.
        watch_sec: between two looks at the store.
        open: listen beyond this machine without any key; everybody who reaches the port is the operator then.
        shared: other servers work on the same store at the same time, so what looks like the rest of a killed upload
            is removed only when it is an hour old.
        otel: send traces to an OpenTelemetry collector (OTEL_EXPORTER_OTLP_ENDPOINT says where).
        capacity, wall: limits of the engine and of the wire.
    """

    backbone: str
    store: str
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "float32"
    device: str | None = None
    pool_bytes: int = 1 << 30
    pin: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    threads: int | None = None
    drain_sec: float = 30.0
    watch_sec: float = 2.0
    open: bool = False
    shared: bool = False
    otel: bool = False
    capacity: Capacity = field(default_factory=Capacity)
    wall: Wall = field(default_factory=Wall)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port = {self.port!r} must be 0 to 65535")
        for name in ("drain_sec", "watch_sec", "pool_bytes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)!r} must be above 0")
