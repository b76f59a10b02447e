"""Tokens a second of vLLM with prefixes and without, and of our engine, on a GPT-2-small shape.

    .venv-vllm/bin/python benchmarks/vllm_throughput.py --threads 2 --record benchmarks/records/DATE_vllm_throughput

Random weights, random token ids, greedy, no EOS, all requests at once; the workload of serve_throughput. vLLM runs
first without the connector, then with it: no foreword, then `--forewords` different ones, then one of 100 tokens
shared by all rows. Each turn has new texts, so that vLLM's cache holds prefixes of earlier turns but no text; the
first turn of each, where every prefix comes from its file, is told apart. Our engine answers the same requests, and
it is told how many answers are the same tokens. Run by the Python of `make test-vllm`'s environment.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from meters import machine, matmul_ceiling
from servers import Ours, gpt2_backbone
from workload import Workload

from foreword.backbone import Backbone
from foreword.engines.export import export_one
from foreword.engines.prefix_files import PrefixFile, salt_of

SHARED = 100


class Vllm:
    """vLLM on a saved model, with the connector or without."""

    def __init__(self, args: argparse.Namespace, model: Path, prefixes: Path | None) -> None:
        from vllm import LLM, SamplingParams

        options: dict[str, Any] = {}
        if prefixes is not None:
            options = {
                "disable_hybrid_kv_cache_manager": True,
                "kv_transfer_config": {
                    "kv_connector": "ForewordConnector",
                    "kv_role": "kv_both",
                    "kv_connector_extra_config": {"prefix_dir": str(prefixes)},
                },
            }
        self.llm = LLM(
            model=str(model), dtype="float32", max_model_len=512, max_num_seqs=args.requests, block_size=32,
            skip_tokenizer_init=True, enforce_eager=not args.compile, **options,
        )
        self.greedy = SamplingParams(temperature=0, max_tokens=args.new_tokens, ignore_eos=True, detokenize=False)

    def run(self, work: Workload, files: list[PrefixFile]) -> tuple[float, list[list[int]]]:
        """Return the seconds that all requests take, and their answers."""
        wires: list[Any] = []
        for number, text in enumerate(work.texts):
            wires.append({"prompt_token_ids": list(text)})
            if files:
                file = files[number % len(files)]
                ids = [file.head.placeholder] * file.head.length + list(text)
                wires[-1] = {"prompt_token_ids": ids, "cache_salt": salt_of(file.digest)}
        start = time.perf_counter()
        made = self.llm.generate(wires, self.greedy, use_tqdm=False)
        return time.perf_counter() - start, [list(out.outputs[0].token_ids) for out in made]

    def close(self) -> None:
        """End vLLM's processes."""
        self.llm.llm_engine.engine_core.shutdown()
        gc.collect()


def turns(vllm: Vllm, works: list[Workload], files: list[PrefixFile]) -> dict[str, Any]:
    """Return tokens a second of the first turn and of the best later one, and the last turn's answers."""
    found = [vllm.run(work, files) for work in works]
    tokens = works[0].requests * works[0].new_tokens
    return {
        "first_tok_per_sec": tokens / found[0][0],
        "tok_per_sec": tokens / min(seconds for seconds, _ in found[1:]),
        "answers": found[-1][1],
    }


def ours(
    args: argparse.Namespace, works: list[Workload], backbone: Backbone, count: int, lengths: tuple[int, ...]
) -> dict[str, Any]:
    """Return the same figures of our engine."""
    best = float("inf")
    for work in works[1:]:
        engine = Ours(args, work, count, lengths, backbone)
        start = time.perf_counter()
        answers = engine.run()
        best = min(best, time.perf_counter() - start)
        engine.close()
    return {"tok_per_sec": args.requests * args.new_tokens / best, "answers": answers}


def export(
    args: argparse.Namespace, work: Workload, backbone: Backbone, folder: Path, count: int, lengths: tuple[int, ...]
) -> list[PrefixFile]:
    """Write the prefixes that `Ours` has under the same numbers."""
    engine = Ours(args, work, count, lengths, backbone)
    files = [export_one(prompt.realise(backbone), backbone, folder) for prompt in engine.prompts]
    engine.close()
    return files


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return one line a case."""
    works = [Workload(args.requests, args.new_tokens, seed=seed) for seed in range(args.repeats + 1)]
    backbone = gpt2_backbone(args)
    backbone.model.save_pretrained(folder / "model")
    cases: dict[str, tuple[int, tuple[int, ...]]] = {"none": (0, ())}
    cases |= {f"{count}": (count, works[0].lengths) for count in args.forewords}
    cases["100 shared"] = (1, (SHARED,))
    files = {name: export(args, works[0], backbone, folder / "prefixes", *case) for name, case in cases.items()}
    bare = Vllm(args, folder / "model", None)
    lines = [{"forewords": "none, no connector", **turns(bare, works, [])}]
    bare.close()
    vllm = Vllm(args, folder / "model", folder / "prefixes")
    lines += [{"forewords": name, **turns(vllm, works, files[name])} for name in cases]
    vllm.close()
    torch.set_num_threads(args.threads)
    beside = {name: ours(args, works, backbone, *case) for name, case in cases.items()}
    for line in lines:
        mine = beside[line["forewords"].split(",")[0]]
        line["of_no_connector"] = line["tok_per_sec"] / lines[0]["tok_per_sec"]
        line["ours_tok_per_sec"] = mine["tok_per_sec"]
        line["same_answers"] = sum(a == b for a, b in zip(line.pop("answers"), mine["answers"], strict=True))
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    head = ("vLLM tok/s", "first turn", "of none", "ours tok/s", "same")
    keys = ("tok_per_sec", "first_tok_per_sec", "of_no_connector", "ours_tok_per_sec", "same_answers")
    text = [f"{'forewords':<20}" + "".join(f"{name:>12}" for name in head)]
    for line in lines:
        cells = (f"{line[key]:>12.2f}" if key == "of_no_connector" else f"{line[key]:>12.0f}" for key in keys)
        text.append(f"{line['forewords']:<20}" + "".join(cells))
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--forewords", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--layers", type=int, default=12, help="fewer for a trial of the script itself")
    parser.add_argument("--repeats", type=int, default=2, help="turns after the first")
    parser.add_argument("--compile", action="store_true", help="let vLLM compile (minutes); eager otherwise")
    parser.add_argument("--record", type=Path, help="write FILE.json and FILE.txt")
    args = parser.parse_args()
    args.device = "cpu"
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "4", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": str(args.threads), "VLLM_LOGGING_LEVEL": "WARNING",
    }
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(args, Path(folder))
    print(text := table(lines))
    config = {key: value for key, value in vars(args).items() if key != "record"}
    ceiling = matmul_ceiling("float32", "cpu")
    print(record := json.dumps({"config": config, "machine": machine("cpu"), "matmul_flops": ceiling, "rows": lines}))
    if args.record:
        args.record.with_suffix(".txt").write_text(text + "\n")
        args.record.with_suffix(".json").write_text(record + "\n")


if __name__ == "__main__":
    main()
