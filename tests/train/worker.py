"""One process of a data-parallel run, started by test_parallel with the variables that torchrun sets.

Called as `python worker.py CONFIGS.json`; trains every config in it, then leaves what the test looks at.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from foreword.backbone import load_backbone
from foreword.config import build
from foreword.train.gang import train_gang
from foreword.train.job import resume, train
from foreword.train.parallel import join_world, shard_weights
from foreword.train.run_config import RunConfig


def main() -> None:
    torch.set_num_threads(1)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    for tree in jobs["single"]:
        train(build(RunConfig, tree), progress=False)
    for run_dir in jobs["resume"]:
        resume(run_dir, progress=False)
    if jobs["gang"]:
        train_gang([build(RunConfig, tree) for tree in jobs["gang"]], progress=False)
    world = join_world("cpu")
    backbone = load_backbone(jobs["single"][0]["backbone"]["source"], device="cpu")
    whole = sum(p.numel() for p in backbone.model.parameters())
    shard_weights(backbone, world)
    held = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in backbone.model.parameters())
    facts = {"rank": world.rank, "size": world.size, "backend": dist.get_backend(), "whole": whole, "held": held}
    Path(sys.argv[1]).with_name(f"rank-{os.environ['RANK']}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
