"""Latency of a server under an open-loop load: requests arrive at random (Poisson), whether or not others have ended.

    python benchmarks/serve_latency.py --bench-python .venv-vllm/bin/python --record benchmarks/records/DATE_latency

The load comes from vLLM's public tool, `vllm bench serve`, unchanged (`make test-vllm` installs it in a venv of its
own); its `--lora-modules` draws a foreword for each request. The server is `foreword serve` in a process of its own
on a GPT-2-small shape with random weights. First all requests arrive at once: what is answered a second then is the
capacity. Then the same requests arrive at 50, 80 and 95 % of it.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from live_server import fill, start
from meters import machine
from transformers import AutoTokenizer
from workload import gpt2_model

from foreword.backbone import bundled_backbones, load_backbone

LOADS = (0.5, 0.8, 0.95)
KEPT = ("ttft", "tpot", "itl", "e2el")
PERCENTILES = (50, 95, 99)
TOOL = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main;"
    "p = argparse.ArgumentParser(); add_cli_args(p); main(p.parse_args())"
)


def save_model(folder: Path, layers: int) -> None:
    """Write the random model with the bundled tokenizer, whose ids it all knows."""
    gpt2_model("float32", "cpu", layers).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bundled_backbones()["foreword-decoder-6m"]).save_pretrained(folder)


def bench(args: argparse.Namespace, url: str, model: Path, rate: float, folder: Path) -> dict:
    """Run the tool once and return its figures."""
    command = [args.bench_python, "-c", TOOL, "--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions"]
    command += ["--model", "plain", "--tokenizer", str(model), "--dataset-name", "random", "--ignore-eos"]
    command += ["--random-input-len", str(args.input_tokens), "--random-output-len", str(args.new_tokens)]
    command += ["--num-prompts", str(args.requests), "--request-rate", str(rate), "--seed", "0"]
    command += ["--lora-modules", *(f"f{n}" for n in range(args.forewords))]
    command += ["--percentile-metrics", ",".join(KEPT), "--metric-percentiles", ",".join(map(str, PERCENTILES))]
    command += ["--save-result", "--result-dir", str(folder), "--result-filename", "out.json", "--disable-tqdm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the load tool failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    told = json.loads((folder / "out.json").read_text())
    if told["completed"] != args.requests:
        raise SystemExit(f"{told['completed']} of {args.requests} requests were answered: {told.get('errors')}")
    figures = {f"{name}_p{p}_ms": round(told[f"p{p}_{name}_ms"], 1) for name in KEPT for p in PERCENTILES}
    return {
        "requests_per_sec": round(told["request_throughput"], 3),
        "tokens_per_sec": round(told["output_throughput"], 1),
        **figures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench-python", required=True, help="of an environment that has vLLM")
    parser.add_argument("--forewords", type=int, default=64)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--input-tokens", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    args.backbone, loads = "", {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(folder / "model", args.layers)
        args.backbone = str(folder / "model")
        each = fill(folder / "store", load_backbone(args.backbone), args.forewords, args.length)
        server = start(args, folder / "store", 2 * args.forewords * each, "--name", "plain")
        try:
            bench(args, server.url, folder / "model", float("inf"), folder)  # warms up
            loads["all at once"] = bench(args, server.url, folder / "model", float("inf"), folder)
            capacity = loads["all at once"]["requests_per_sec"]
            for load in LOADS:
                loads[f"{load:.0%}"] = bench(args, server.url, folder / "model", load * capacity, folder)
                print(f"{load:.0%}", json.dumps(loads[f"{load:.0%}"]), flush=True)
        finally:
            server.process.terminate()
            server.process.wait(60)
    hidden = ("record", "bench_python", "backbone")
    settings = {name: value for name, value in vars(args).items() if name not in hidden}
    text = json.dumps({"machine": machine("cpu"), "settings": settings, "loads": loads}, indent=2)
    print(text)
    if args.record:
        args.record.with_suffix(".json").write_text(text + "\n")


if __name__ == "__main__":
    main()
