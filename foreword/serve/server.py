"""One server: load the backbone, start the engine, listen; on SIGTERM finish what is under way."""

import asyncio
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import uvicorn

from foreword.backbone import load_backbone
from foreword.errors import ConfigError
from foreword.serve.app import make_app
from foreword.serve.catalog import Catalog
from foreword.serve.engine import Engine
from foreword.serve.logs import make_log
from foreword.serve.pool import Pool
from foreword.serve.service import Service
from foreword.serve.settings import ServeConfig
from foreword.serve.store_api import sweep
from foreword.serve.tenants import TENANTS, Keyring, Tenant
from foreword.serve.tracing import OpenTracer, Tracer
from foreword.serve.watch import Watch

C = TypeVar("C", bound=ServeConfig)
BACKLOG = 2048
SWEEP_SHARED_SEC = 3600.0
SILENCE_MS = 60_000  # the kernel drops a connection whose peer acknowledges nothing for so long


def serve(config: ServeConfig) -> int:
    """Serve until SIGTERM or SIGINT and return 0. Logs go to stderr as JSON lines.

    Raises:
        ConfigError: the port is taken, or the server would be open to others without a key.
        BackboneError: the backbone cannot be loaded.
    """
    return serve_with(config, make_service)


def serve_with(config: C, make: Callable[[C, Path, Keyring], Service]) -> int:
    """Serve what `make` returns for a configuration, its store and its keys, until a signal, and return 0."""
    store, keyring = open_store(config)
    listener = bind(config)
    try:
        service = make(config, store, keyring)
        try:
            return asyncio.run(run(config, service, listener))
        finally:
            service.engine.stop()
            service.pool.close()
    finally:
        listener.close()


def open_store(config: ServeConfig) -> tuple[Path, Keyring]:
    """Return the store, made if it is missing, and its keys; PyTorch has the threads that it is to have.

    Raises:
        ConfigError: others could come in without a key.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    store = Path(config.store).expanduser()
    store.mkdir(parents=True, exist_ok=True)
    keyring = Keyring(store)
    check_open(config, keyring)
    return store, keyring


def make_service(config: ServeConfig, store: Path, keyring: Keyring) -> Service:
    """Return a service whose engine runs, with the pinned forewords loading.

    Raises:
        BackboneError: the backbone cannot be loaded.
    """
    options = {"device": config.device} if config.device else {}
    backbone = load_backbone(config.backbone, dtype=config.dtype, **options)
    pool = Pool(backbone, config.pool_bytes, longest=config.wall.virtual_tokens)
    engine = Engine(backbone, pool, config.capacity).start()
    name = config.name or Path(config.backbone).name
    service = Service(backbone, engine, pool, Catalog(store, name), keyring, name, config.capacity.rows,
                      config.wall, config.hub, log=make_log())
    prepare(service, config, store, {"parameters": backbone.model.num_parameters()})
    return service


def prepare(service: Service, config: ServeConfig, store: Path, facts: dict[str, Any]) -> None:
    """Watch the service's engine, pin what is to stay, sweep what a killed upload left, and log that it starts."""
    service.metrics.watch(service.engine, service.pool)
    for pinned in config.pin:
        entry = service.find(Tenant(), pinned)
        if entry is not None:
            service.pool.pin(entry.id)
    tenants = store / TENANTS
    roots = [store, *(tenants.iterdir() if tenants.is_dir() else ())]
    swept = sweep(roots, SWEEP_SHARED_SEC if config.shared else 0.0)
    service.log.info("starting", extra={"backbone": config.backbone, "store": str(store), "swept": swept,
                                        "keys": len(service.keyring.keys()), **facts})


async def run(config: ServeConfig, service: Service, listener: socket.socket) -> int:
    """Answer requests on a bound socket until a signal; then finish those under way, at most `drain_sec`."""
    tracer: Tracer = OpenTracer() if config.otel else Tracer()
    watch = Watch(service, config.watch_sec)
    server = Server(uvicorn.Config(
        make_app(service, tracer, tracer.close), log_config=None, access_log=False, lifespan="on", server_header=False,
        timeout_graceful_shutdown=max(1, round(config.drain_sec)), timeout_keep_alive=30, backlog=BACKLOG,
        h11_max_incomplete_event_size=1 << 16,
    ), service)
    address = "http://{}:{}".format(*listener.getsockname()[:2])
    service.log.info("listening", extra={"address": address, "model": service.name})
    _route_logs(service.log)
    watch.start()
    before = {number: signal.signal(number, _nothing) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        await server.serve(sockets=[listener])
    finally:
        watch.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    service.log.info("stopped", extra={"address": address})
    return 0


class Server(uvicorn.Server):
    """uvicorn's server; a signal also closes the service's door."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second SIGINT stops at once, as uvicorn does it."""
        self._service.draining.set()
        super().handle_exit(sig, frame)


def bind(config: ServeConfig) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        place = f"port = {config.port} on {config.host}"
        raise ConfigError(f"{place} cannot be had ({error.strerror}); give another") from None
    listener.listen(BACKLOG)
    return listener


def check_open(config: ServeConfig, keyring: Keyring) -> None:
    """Refuse to listen beyond this machine without keys, unless that is asked for, and over a store that lost them.

    Raises:
        ConfigError: says how to make a key.
    """
    if keyring.lost():
        raise ConfigError(
            f"store = {config.store!r} has forewords of tenants, but their keys' file is gone; restore keys.json from "
            f"a copy, or make a key (`foreword keys add TENANT --store {config.store}`)"
        )
    if keyring.keys() or config.open or _is_loopback(config.host):
        return
    raise ConfigError(
        f"host = {config.host!r} lets others in, and the store has no keys; make one (`foreword keys add TENANT "
        f"--store {config.store}`) or say open=true"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _route_logs(log: logging.Logger) -> None:
    """Have uvicorn's own words (warnings and worse) written as ours are."""
    for name in ("uvicorn.error", "uvicorn.asgi"):
        theirs = logging.getLogger(name)
        theirs.handlers, theirs.propagate = list(log.handlers), False
        theirs.setLevel(logging.WARNING)


def _nothing(*_: Any) -> None:
    """What a signal does after uvicorn has dealt with it: the process then ends by itself, with exit code 0."""
