"""A real server on a real port for tests: uvicorn in a thread, tiny forewords in a store, and a way to look inside."""

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
import uvicorn

from foreword.artifact import save_prompt
from foreword.backbone import Backbone
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.serve.app import make_app
from foreword.serve.catalog import Catalog
from foreword.serve.logs import make_log
from foreword.serve.pool import Pool
from foreword.serve.server import bind
from foreword.serve.service import Service
from foreword.serve.settings import ServeConfig, Wall
from foreword.serve.tenants import Keyring

PLAIN = "plain"


@dataclass
class Running:
    """A server that answers, and its parts."""

    url: str
    service: Service
    engine: object
    logs: io.StringIO
    server: uvicorn.Server

    def client(self, key: str | None = None, **options) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)


def save(backbone: Backbone, path: Path, kind: str = "prefix", length: int = 3, seed: int = 0) -> Path:
    """Write a random foreword."""
    prompt = make_prompt(PromptSpec(kind=kind, length=length), backbone).fold()
    draw = torch.Generator().manual_seed(seed)
    for table in prompt.tables.values():
        table.set(torch.randn(table().shape, generator=draw))
    return save_prompt(prompt, path, backbone)


@contextlib.contextmanager
def serving(
    backbone: Backbone, store: Path, engine, pool=None, wall: Wall | None = None, tracer=None, **options
) -> Iterator[Running]:
    """Run a server in a thread; on the way out it drains as SIGTERM would have it."""
    store.mkdir(parents=True, exist_ok=True)
    pool = pool or Pool(backbone)
    logs = io.StringIO()
    service = Service(
        backbone, engine, pool, Catalog(store, PLAIN), Keyring(store), PLAIN, wall=wall or Wall(), log=make_log(logs),
        **options,
    )
    service.metrics.watch(engine, pool)
    listener = bind(ServeConfig("none", "none", port=0))
    server = uvicorn.Server(uvicorn.Config(make_app(service, tracer), log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    wait_for(lambda: server.started)
    try:
        yield Running(url, service, engine, logs, server)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        engine.stop()
        assert not thread.is_alive()


def wait_for(true, seconds: float = 10.0) -> None:
    """Wait until something is true, or fail."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
