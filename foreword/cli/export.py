"""`foreword export vllm` and `foreword gateway`: the commands of other engines."""

import argparse
import sys
from typing import Any

from foreword.cli.command import add_command
from foreword.cli.serve import add_server_options, need, read_settings, serve_on_ray


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
    add("--vllm", action="append", metavar="URL", help="a vLLM server; repeat for more")
    add("--prefixes", metavar="DIR", help="the servers' directory of prefix files; default: .prefixes in the store")
    add_server_options(add)


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
    from foreword.config import build

    tree = read_settings(arguments, ("vllm", "prefixes"))
    if "ray" in tree:
        return serve_on_ray(tree, "RayGatewayConfig")
    need("gateway", "fastapi", "uvicorn", "prometheus_client", "python_multipart", "httpx")
    from foreword.engines.gateway import GatewayConfig, gateway

    return gateway(build(GatewayConfig, tree))
