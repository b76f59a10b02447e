"""Several processes that train as one: gradients summed, the loss divided by the global count, weights sharded.

Only the prompt's gradients travel (a few hundred kilobytes), in one flat message a step.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import BackboneError
from foreword.geometry import blocks


@dataclass(frozen=True)
class World:
    """The processes of one run: `rank` of `size`, this one on `device` (None: wherever the config says)."""

    rank: int = 0
    size: int = 1
    device: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def sum_counts(self, counts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Return each count summed over all processes."""
        if self.size == 1:
            return [list(row) for row in counts]
        tensor = torch.tensor(counts, dtype=torch.long, device=self.device or "cpu")
        dist.all_reduce(tensor)
        return tensor.tolist()

    def sum_gradients(self, parameters: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        """Sum gradients (in place) and a scalar loss over all processes, in one message; return the loss."""
        if self.size == 1:
            return loss
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters.values()]
        flat = torch.cat([*(g.flatten() for g in gradients), loss.flatten().to(gradients[0].dtype)])
        dist.all_reduce(flat)
        for parameter, piece in zip(parameters.values(), flat[:-1].split([g.numel() for g in gradients]), strict=True):
            parameter.grad = piece.view_as(parameter).clone()
        return flat[-1]

    def same(self, value: float) -> float:
        """Return the first process's value on every process, so that all decide alike."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device or "cpu")
        dist.broadcast(tensor, 0)
        return tensor.item()

    def mean(self, total: Tensor, count: int) -> float:
        """Return the sum of all processes' totals over the sum of their counts."""
        if self.size == 1:
            return float(total) / count
        tensor = torch.stack([total.double(), torch.tensor(float(count), device=total.device, dtype=torch.float64)])
        dist.all_reduce(tensor)
        return (tensor[0] / tensor[1]).item()

    def share(self, parameters: Mapping[str, Tensor]) -> None:
        """Give every process the first one's parameters, so that all start from the same bits."""
        if self.size > 1:
            for parameter in parameters.values():
                dist.broadcast(parameter.data, 0)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()


def join_world(device: str | None = None) -> World:
    """Return this process's place among those that `accelerate launch` or `torchrun` started; alone without them.

    Args:
        device: the configured device; `cpu` keeps the processes off the GPUs and talking through gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return World(state.process_index, state.num_processes, str(state.device))


def shard_weights(backbone: Backbone, world: World) -> None:
    """Split the frozen weights of every layer over all processes (FSDP2); a layer is gathered while it runs.

    Embeddings and head stay whole on each process: prompts read the embedding table directly.

    Raises:
        BackboneError: no list of layers is found in the model.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    layers = blocks(backbone.model)
    if not layers:
        raise BackboneError(f"{type(backbone.model).__name__} has no list of layers to shard; set shard to false")
    mesh = init_device_mesh(torch.device(world.device or "cpu").type, (world.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    backbone.model.foreword_sharded = True  # embedding prompts then run in each row (SoftPrompt.realise)
