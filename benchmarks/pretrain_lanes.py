"""Pretraining runs side by side on one GPU that is lent by the minute and reaches no network.

    python benchmarks/pretrain_lanes.py pack runs/pretrain-data carry --parts 2     # here: about a byte a token
    python benchmarks/pretrain_lanes.py run plan.yaml --carry carry/part0 --work /tmp/lanes --out OUT --sec 60
    python benchmarks/pretrain_lanes.py run plan.yaml --carry carry/part1 --work /tmp/lanes --out OUT --sec 530
    cp /tmp/lanes/runs-530/left/* OUT                                               # what was too much for one call
    python benchmarks/pretrain_lanes.py unpack OUT runs/pretrain                     # here again

`pack` compresses prepared data into parts; part 0 holds a piece of every stream, so that a rehearsal can begin with
it alone. `run` adds the carried pieces to those that are in `--work`, then trains what the plan says; what ends by
`--sec` lies in `--out` in files of at most 15 MB. A plan is a YAML list of lanes; a lane is a list of runs, one after
the other; lanes go on at the same time and share the device:

    - [{recipe: decoder-60m, until: 1.0}]        # decays in time to end at this share of `--sec`
    - [{recipe: t5-6m, until: 0.8}, {recipe: t5-6m-lm10, of: t5-6m, share: 0.1}]  # a share of that run's steps

The decoders in docs/PRETRAINING.md were made by this script's first form, four lanes of 528 s: 60 M; 20 M; 6 M until
0.52, t5-1.5m until 0.74 and 1.5 M to the end; t5-6m until 0.83. The T5s of 6 M and 20 M: two lanes of 530 s, until 0.82
and 0.87, each with both adaptations behind. Those wanted 138 s where some 70 were left; a second call with a plan of
them alone, the same `--work` and `--sec` and a `--grace` below zero, made them from what lay there.
"""

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml

PIECE_BYTES, FILE_BYTES, FILES = 8_000_000, 15_000_000, 4  # so many files come back from one call
# A token is two bytes, so the compressor looks at bytes two by two.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lp": 1, "pb": 1, "lc": 3}]
START_SEC, GRACE_SEC = 14, 36  # from starting a process to its first step; from the plan's end to what is given up
ROOT = Path(__file__).resolve().parents[1]


def pack(data: Path, out: Path, parts: int) -> None:
    """Compress the token streams of prepared data into `out/part0` ... and the rest of it into part 0."""
    pieces: list[tuple[str, bytes]] = []
    for path in sorted(data.glob("*/*.bin")):
        blob = path.read_bytes()
        for index, start in enumerate(range(0, len(blob), PIECE_BYTES)):
            pieces.append((f"{path.parent.name}@{path.stem}@{index:03d}", blob[start : start + PIECE_BYTES]))
    with ThreadPoolExecutor() as pool:
        packed = list(pool.map(lambda piece: lzma.compress(piece[1], filters=FILTERS), pieces))
    filled = [0] * parts
    firsts = [name.endswith("@000") for name, _ in pieces]
    for index in sorted(range(len(pieces)), key=lambda i: not firsts[i]):
        part = 0 if firsts[index] else min(range(parts), key=lambda p: filled[p])
        filled[part] += len(packed[index])
        folder = out / f"part{part}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{pieces[index][0]}.xz").write_bytes(packed[index])
    shutil.copy(data / "manifest.json", out / "part0")
    shutil.copytree(data / "tokenizer", out / "part0" / "tokenizer", dirs_exist_ok=True)
    print(f"{len(pieces)} pieces; bytes by part: {filled}")


def assemble(carry: Path, work: Path) -> Path:
    """Return prepared data made of all the pieces that have been carried into `work` so far."""
    pool_folder, data = work / "pieces", work / "data"
    pool_folder.mkdir(parents=True, exist_ok=True)

    def decompress(path: Path) -> None:
        (pool_folder / path.stem).write_bytes(lzma.decompress(path.read_bytes()))

    with ThreadPoolExecutor() as pool:
        list(pool.map(decompress, carry.glob("*.xz")))
    if (carry / "manifest.json").is_file():
        shutil.copy(carry / "manifest.json", work)
        shutil.copytree(carry / "tokenizer", work / "tokenizer", dirs_exist_ok=True)
    shutil.rmtree(data, ignore_errors=True)
    for name in sorted({path.name.rsplit("@", 1)[0] for path in pool_folder.iterdir()}):
        split, source = name.split("@")
        (data / split).mkdir(parents=True, exist_ok=True)
        whole = b"".join(path.read_bytes() for path in sorted(pool_folder.glob(f"{name}@*")))
        (data / split / f"{source}.bin").write_bytes(whole)
    shutil.copy(work / "manifest.json", data)
    shutil.copytree(work / "tokenizer", data / "tokenizer")
    return data


class Lanes:
    """The runs of a plan and where they stand."""

    def __init__(self, data: Path, work: Path, sec: float, extra: list[str]) -> None:
        self.data, self.runs, self.sec, self.extra = data, work / f"runs-{sec:.0f}", sec, extra
        self.began = time.monotonic()
        self.names: list[str] = []  # of finished runs
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(work / "compiled")}

    def lane(self, runs: list[dict[str, Any]]) -> None:
        """Train the runs of a lane one after the other; a failed one ends the lane."""
        for run in runs:
            recipe = ROOT / "recipes" / "pretrain" / f"{run['recipe']}.yaml"
            settings = self._settings(run)
            command = [sys.executable, "-m", "foreword.pretrain", str(recipe), *settings, *self.extra]
            log = self.runs / f"{run['recipe']}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("w") as file:
                code = subprocess.run(command, env=self.env, stdout=file, stderr=subprocess.STDOUT).returncode
            print(f"{run['recipe']}: exit {code} after {time.monotonic() - self.began:.0f} s", flush=True)
            if code:
                print(log.read_text()[-1500:], flush=True)
                return
            self.names.append(yaml.safe_load(recipe.read_text())["name"])

    def _settings(self, run: dict[str, Any]) -> list[str]:
        shared = [f"run={self.runs}", f"data.folder={self.data}", f"data.tokenizer={self.data / 'tokenizer'}"]
        if "until" in run:
            left = run["until"] * self.sec - (time.monotonic() - self.began) - START_SEC
            return [*shared, f"deadline_sec={left:.0f}", "steps=1000000"]
        recipe = yaml.safe_load((ROOT / "recipes" / "pretrain" / f"{run['of']}.yaml").read_text())
        before = self.runs / recipe["name"] / "backbone"
        steps = json.loads((before / "pretraining.json").read_text())["steps"]
        return [*shared, f"init={before}", f"steps={max(int(steps * run['share']), 4)}"]


def train(args: argparse.Namespace) -> None:
    data = assemble(args.carry, args.work)
    lanes = Lanes(data, args.work, args.sec, args.set)
    plan = yaml.safe_load(args.plan.read_text())
    threads = [threading.Thread(target=lanes.lane, args=(runs,), daemon=True) for runs in plan]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(args.sec + args.grace - (time.monotonic() - lanes.began), 0))
    hand_over(lanes, args.out)
    sys.stdout.flush()
    os._exit(0)  # what is not finished is given up


def hand_over(lanes: Lanes, out: Path) -> None:
    """Write the finished runs, curves and logs to `out`, weights losslessly squeezed, in files of a bounded size."""
    out.mkdir(parents=True, exist_ok=True)
    whole = lanes.runs / "all.tar"
    weights = [lanes.runs / name / "backbone" / "model.safetensors" for name in lanes.names]
    with ThreadPoolExecutor() as pool:
        squeezed = list(pool.map(squeeze, weights))
    with tarfile.open(whole, "w") as tar:
        for path in sorted(lanes.runs.rglob("*.jsonl")) + sorted(lanes.runs.glob("*.log")):
            tar.add(path, path.relative_to(lanes.runs))
        for path, blob in zip(weights, squeezed, strict=True):
            packed = path.with_name("model.planes.xz")
            packed.write_bytes(blob)
            for file in sorted(path.parent.iterdir()):
                if file != path and file.name != "loss_curve.jsonl":
                    tar.add(file, file.relative_to(lanes.runs))
    blob = whole.read_bytes()
    left = lanes.runs / "left"
    left.mkdir(exist_ok=True)
    for index, start in enumerate(range(0, len(blob), FILE_BYTES)):
        ((out if index < FILES else left) / f"lanes-{index:02d}").write_bytes(blob[start : start + FILE_BYTES])
    print(f"handed over {len(blob):,} bytes: {', '.join(lanes.names)}")


def squeeze(path: Path) -> bytes:
    """Return a bfloat16 file with sign and exponent bytes apart from mantissas, of which only the first compress."""
    raw = np.frombuffer(path.read_bytes(), np.uint8)
    even = len(raw) // 2 * 2
    high = lzma.compress(raw[1:even:2].tobytes(), preset=1)
    return len(high).to_bytes(8, "big") + high + raw[:even:2].tobytes() + raw[even:].tobytes()


def unsqueeze(blob: bytes) -> bytes:
    """Return what `squeeze` was given."""
    cut = 8 + int.from_bytes(blob[:8], "big")
    high = np.frombuffer(lzma.decompress(blob[8:cut]), np.uint8)
    raw = np.empty(2 * len(high), np.uint8)
    raw[1::2], raw[::2] = high, np.frombuffer(blob[cut : cut + len(high)], np.uint8)
    return raw.tobytes() + blob[cut + len(high) :]


def unpack(out: Path, runs: Path) -> None:
    """Put the runs that came back under `runs`, as `foreword pretrain` leaves them but for their optimiser state."""
    whole = runs / "lanes.tar"
    runs.mkdir(parents=True, exist_ok=True)
    whole.write_bytes(b"".join(path.read_bytes() for path in sorted(out.glob("lanes-*"))))
    with tarfile.open(whole) as tar:
        tar.extractall(runs, filter="data")
    whole.unlink()
    for path in runs.glob("*/backbone/model.planes.xz"):
        path.with_name("model.safetensors").write_bytes(unsqueeze(path.read_bytes()))
        path.unlink()
        shutil.copy(path.parents[1] / "metrics.jsonl", path.with_name("loss_curve.jsonl"))
        print(path.parent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    sub = parts.add_parser("pack")
    sub.add_argument("data", type=Path)
    sub.add_argument("out", type=Path)
    sub.add_argument("--parts", type=int, default=2)
    sub.set_defaults(work_on=lambda args: pack(args.data, args.out, args.parts))
    sub = parts.add_parser("run")
    sub.add_argument("plan", type=Path)
    sub.add_argument("--carry", type=Path, required=True)
    sub.add_argument("--work", type=Path, required=True)
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--sec", type=float, required=True)
    sub.add_argument("--grace", type=float, default=GRACE_SEC)
    sub.add_argument("--set", action="append", default=[], metavar="field.path=value", help="for every run")
    sub.set_defaults(work_on=train)
    sub = parts.add_parser("unpack")
    sub.add_argument("out", type=Path)
    sub.add_argument("runs", type=Path)
    sub.set_defaults(work_on=lambda args: unpack(args.out, args.runs))
    args = parser.parse_args()
    args.work_on(args)


if __name__ == "__main__":
    main()
