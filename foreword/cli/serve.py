"""`foreword serve` and `foreword keys`."""

import argparse
import importlib.util
import json
from collections.abc import Callable
from typing import Any

from foreword.cli.command import add_command
from foreword.errors import ConfigError, MissingExtraError


def add_serve(commands: Any) -> None:
    """Add `foreword serve`."""
    add = add_command(commands, "serve", _serve, "Serve forewords on one frozen model over OpenAI's HTTP API.")
    add("settings", nargs="*", metavar="CONFIG.yaml | field.path=value",
        help="a configuration file, then fields that differ from it: `capacity.rows=64 wall.deadline_sec=60`")
    add("--backbone", help="directory, bundled name or hub id")
    add_server_options(add)


def add_server_options(add: Callable[..., Any]) -> None:
    """Add what every server takes."""
    add("--store", metavar="DIR", help="directory of forewords; each folder in it is served under its name")
    add("--host", help="default: 127.0.0.1")
    add("--port", type=int, help="default: 8000")
    add("--name", help="of the plain model; default: the backbone's last path part")
    add("--dtype")
    add("--device")
    add("--threads", type=int)
    add("--ray", metavar="ADDRESS", help="serve by replicas on a Ray cluster, as many as are needed (ray.max_replicas "
        "at most): its address, `auto`, or `local` for this machine")


def add_keys(commands: Any) -> None:
    """Add `foreword keys`."""
    add = add_command(commands, "keys", _keys, "Make, list and revoke the API keys of a store.")
    add("action", choices=("add", "list", "revoke"))
    add("subject", nargs="?", metavar="TENANT | KEY_ID", help="whose key to add, or which to revoke")
    add("--store", metavar="DIR", required=True)
    add("--grant", action="append", default=[], metavar="NAME",
        help="a foreword of the operator's that the tenant may use; `*` for all")
    add("--operator", action="store_true", help="the key may read /metrics and the whole server's state")
    add("--quota", action="append", default=[], metavar="NAME=NUMBER",
        help="requests_per_min, tokens_per_min, rows, forewords, store_bytes")


def _serve(arguments: argparse.Namespace) -> int:
    from foreword.config import build

    tree = read_settings(arguments, ())
    if "ray" in tree:
        return serve_on_ray(tree, "RayServeConfig")
    need("serve", "fastapi", "uvicorn", "prometheus_client", "python_multipart")
    from foreword.serve.server import serve
    from foreword.serve.settings import ServeConfig

    return serve(build(ServeConfig, tree))


def serve_on_ray(tree: dict[str, Any], kind: str) -> int:
    """Serve by replicas on Ray; `kind` names the configuration that `tree` is of."""
    need("ray-serve", "ray", "fastapi", "uvicorn", "prometheus_client", "python_multipart", "httpx")
    from foreword.config import build
    from foreword.engines import ray_serve, ray_settings

    return ray_serve.serve_on_ray(build(getattr(ray_settings, kind), tree))


def read_settings(arguments: argparse.Namespace, more: tuple[str, ...]) -> dict[str, Any]:
    """Return a server's settings: of its file, then of `field=value` words, then of options.

    Args:
        arguments: with `settings`, and an attribute for each option.
        more: options beside those that every server takes; the first of them must be given.

    Raises:
        ConfigError: two files, or no backbone, store or first of `more`.
    """
    from foreword.config import load_yaml, override

    files = [word for word in arguments.settings if "=" not in word]
    if len(files) > 1:
        raise ConfigError(f"{len(files)} configuration files; give one, then fields as field.path=value")
    tree = override(load_yaml(files[0]) if files else {}, [word for word in arguments.settings if "=" in word])
    shortcuts = ("backbone", "store", "host", "port", "name", "dtype", "device", "threads", *more)
    tree |= {name: getattr(arguments, name) for name in shortcuts if getattr(arguments, name) is not None}
    if arguments.ray is not None:
        tree = override(tree, [f"ray.address={arguments.ray}"])
    for name in ("backbone", "store", *more[:1]):
        if name not in tree:
            raise ConfigError(f"{name} is missing; give --{name}")
    return tree


def need(extra: str, *modules: str) -> None:
    """Refuse, with the command that mends it, where a module of an extra is not installed."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"{extra} needs {name}, which is not installed; pip install 'foreword[{extra}]'")


def _keys(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from foreword.config import build, override
    from foreword.serve.tenants import Keyring, Quota, describe

    ring = Keyring(Path(arguments.store).expanduser())
    if arguments.action == "list":
        print("\n".join(json.dumps(describe(key)) for key in ring.keys().values()))
        return 0
    if arguments.subject is None:
        raise ConfigError(f"keys {arguments.action} needs {'a tenant' if arguments.action == 'add' else 'a key id'}")
    if arguments.action == "revoke":
        print(f"revoked {arguments.subject} of tenant {ring.revoke(arguments.subject).tenant}")
        return 0
    quota = build(Quota, override({}, arguments.quota))
    print(ring.add(arguments.subject, grants=tuple(arguments.grant), operator=arguments.operator, quota=quota))
    return 0
