"""`foreword export vllm` and `foreword gateway`: the commands of other engines."""

import argparse
import importlib.util
import sys
from typing import Any

from foreword.cli.command import add_command
from foreword.errors import ConfigError, MissingExtraError

SHORTCUTS = ("backbone", "store", "vllm", "prefixes", "host", "port", "name", "dtype", "device", "threads")


def add_export(commands: Any) -> None:
    """Add `foreword export`."""
    add = add_command(commands, "export", _export, "Write leading forewords as prefix files that vLLM's workers read.")
    add("engine", choices=("vllm",), help="whose files to write")
    add("source", metavar="STORE | ARTIFACT", help="a store's directory, or one saved foreword")
    add("--backbone", required=True, help="directory, bundled name or hub id")
    add("--out", metavar="DIR", required=True, help="directory of prefix files; earlier ones in it stay")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--device")


def add_gateway(commands: Any) -> None:
    """Add `foreword gateway`."""
    add = add_command(commands, "gateway", _gateway, "Serve forewords through vLLM servers over OpenAI's HTTP API.")
    add("settings", nargs="*", metavar="CONFIG.yaml | field.path=value",
        help="a configuration file, then fields that differ from it, as for `foreword serve`")
    add("--backbone", help="directory, bundled name or hub id of what the vLLM servers run")
    add("--store", metavar="DIR", help="directory of forewords; each folder in it is served under its name")
    add("--vllm", action="append", metavar="URL", help="a vLLM server; repeat for more")
    add("--prefixes", metavar="DIR", help="the servers' directory of prefix files; default: .prefixes in the store")
    add("--host", help="default: 127.0.0.1")
    add("--port", type=int, help="default: 8000")
    add("--name", help="of the plain model; default: the backbone's last path part")
    add("--dtype")
    add("--device")
    add("--threads", type=int)


def _export(arguments: argparse.Namespace) -> int:
    from foreword.backbone import load_backbone
    from foreword.engines.export import export_vllm

    backbone = load_backbone(arguments.backbone, dtype=arguments.dtype, device=arguments.device)
    made = export_vllm(arguments.source, backbone, arguments.out)
    for name, file in made.files.items():
        print(f"{name}: {file.head.length} virtual tokens -> {file.name}")
    for name, why in made.refused.items():
        print(f"foreword: {name} is not exported: {why}", file=sys.stderr)
    print(f"index: {made.index}")
    return 1 if made.refused else 0


def _gateway(arguments: argparse.Namespace) -> int:
    from foreword.config import build, load_yaml, override

    _need_gateway()
    from foreword.engines.gateway import GatewayConfig, gateway

    files = [word for word in arguments.settings if "=" not in word]
    if len(files) > 1:
        raise ConfigError(f"{len(files)} configuration files; give one, then fields as field.path=value")
    tree = override(load_yaml(files[0]) if files else {}, [word for word in arguments.settings if "=" in word])
    tree |= {name: getattr(arguments, name) for name in SHORTCUTS if getattr(arguments, name) is not None}
    for name in ("backbone", "store", "vllm"):
        if name not in tree:
            raise ConfigError(f"{name} is missing; give --{name}")
    return gateway(build(GatewayConfig, tree))


def _need_gateway() -> None:
    for name in ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "httpx"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"gateway needs {name}, which is not installed; pip install 'foreword[gateway]'")
