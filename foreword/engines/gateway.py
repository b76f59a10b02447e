"""The gateway: `foreword serve`'s HTTP face, tenants and store, with vLLM servers as its engine."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from foreword.backbone import load_backbone
from foreword.engines.prefix_shelf import PrefixShelf
from foreword.engines.remote import RemoteEngine
from foreword.engines.upstreams import Upstreams
from foreword.engines.vllm_wire import scope_of
from foreword.errors import ConfigError
from foreword.serve.catalog import Catalog
from foreword.serve.logs import make_log
from foreword.serve.pool import Pool
from foreword.serve.server import prepare, serve_with
from foreword.serve.service import Service
from foreword.serve.settings import ServeConfig
from foreword.serve.tenants import LOCAL, Keyring

PREFIXES = ".prefixes"
KEY_VARIABLE = "VLLM_API_KEY"
"""Where the servers' API key is read from, as vLLM itself reads it."""


@dataclass(frozen=True)
class GatewayConfig(ServeConfig):
    """A gateway: all of a server's settings, and where the vLLM servers are.

    The backbone is loaded to make token ids, to check forewords and to compile prompts; it answers nothing.

    Attributes:
        vllm: addresses of the servers, as http://HOST:PORT.
        prefixes: the directory that all servers read prefix files from; `.prefixes` in the store by default.
    """

    vllm: tuple[str, ...] = ()
    prefixes: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.vllm:
            raise ConfigError("vllm is empty; give the address of at least one vLLM server: --vllm http://HOST:PORT")

    @property
    def prefix_folder(self) -> Path:
        """Where prefix files go."""
        return Path(self.prefixes or Path(self.store) / PREFIXES).expanduser()


def gateway(config: GatewayConfig) -> int:
    """Serve until SIGTERM or SIGINT and return 0. Logs go to stderr as JSON lines.

    Raises:
        ConfigError: the port is taken, a server's address is none, or others could come in without a key.
        BackboneError: the backbone cannot be loaded, or is none that vLLM serves prefixes for.
    """
    return serve_with(config, make_gateway)


def make_gateway(config: GatewayConfig, store: Path, keyring: Keyring) -> Service:
    """Return a service whose remote engine runs.

    Raises:
        ConfigError: a server's address is none.
        BackboneError: the backbone cannot be loaded, or is none that vLLM serves prefixes for.
    """
    upstreams = Upstreams(config.vllm, os.environ.get(KEY_VARIABLE))
    options = {"device": config.device} if config.device else {}
    backbone = load_backbone(config.backbone, dtype=config.dtype, **options)
    pool = Pool(backbone, config.pool_bytes, longest=config.wall.virtual_tokens)
    config.prefix_folder.mkdir(parents=True, exist_ok=True)
    scopes = functools.partial(scope_of, operator=LOCAL)
    shelf = PrefixShelf(config.prefix_folder, backbone)
    engine = RemoteEngine(backbone, pool, shelf, upstreams, config.capacity, scopes).start()
    name = config.name or Path(config.backbone).name
    slots = config.capacity.rows * len(config.vllm)
    service = Service(backbone, engine, pool, Catalog(store, name), keyring, name, slots, config.wall, config.hub,
                      log=make_log())
    prepare(service, config, store, {"vllm": list(config.vllm), "prefixes": str(config.prefix_folder)})
    return service
