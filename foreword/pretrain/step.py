"""One optimiser step; on a GPU replayed as one CUDA graph for each shape of batch.

A small model's step is many kernels of a few microseconds, which Python launches one by one: the optimisers alone took
it 12 ms a step (docs/PRETRAINING.md, Speed).
"""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from foreword.pretrain.batch import Batch, Loss

_WARM_UPS = 2  # steps of a shape made kernel by kernel first: they compile, and fill the optimisers' states
_Shapes = tuple[torch.Size, torch.Size]


@dataclass(frozen=True)
class _Captured:
    """A graph of a whole step with the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    metrics: dict[str, Tensor]


class OptimStep:
    """Moves the weights of a model by the gradients of a step's batches."""

    def __init__(
        self,
        model: PreTrainedModel,
        optimizers: list[Optimizer],
        loss: Loss,
        grad_clip: float,
        bfloat16: bool,
        graphed: bool,
    ) -> None:
        self.model, self.optimizers, self.loss = model, optimizers, loss
        self.grad_clip, self.bfloat16, self.graphed = grad_clip, bfloat16, graphed
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = self.parameters[0].device
        self.made: Counter[_Shapes] = Counter()
        self.captured: dict[_Shapes, _Captured] = {}
        if graphed:
            self.stream, self.pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def __call__(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Make the step; return `loss` (mean nats a target) and `grad_norm`, both `[]`, valid until the next call."""
        if self.graphed and len(batches) == 1:
            return self._graphed(batches[0])
        return self._plain(batches)

    def _plain(self, batches: list[Batch]) -> dict[str, Tensor]:
        targets = sum(int((batch.targets >= 0).sum()) for batch in batches)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            total += self._backward(batch.to(self.device), targets)
        return self._update(total)

    def _backward(self, batch: Batch, targets: int | Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            loss = self.loss.per_target(self.model, batch).sum() / targets
        loss.backward()
        return loss.detach()

    def _update(self, loss: Tensor) -> dict[str, Tensor]:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "grad_norm": norm}

    def _graphed(self, batch: Batch) -> dict[str, Tensor]:
        shapes = (batch.inputs.shape, batch.targets.shape)
        self._rates_on_device()
        if self.made[shapes] < _WARM_UPS:
            self.made[shapes] += 1
            # Where it will be captured: gradients are added up on the stream of their first use.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                metrics = self._plain([batch])
            torch.cuda.current_stream().wait_stream(self.stream)
            return metrics
        if shapes not in self.captured:
            self.captured[shapes] = self._capture(batch)
        captured = self.captured[shapes]
        captured.batch.copy_(batch)
        captured.graph.replay()
        return captured.metrics

    def _rates_on_device(self) -> None:
        """Keep learning rates where a graph reads them; as numbers they would be those of its capture for ever."""
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            if not isinstance(group["lr"], Tensor):
                group["lr"] = torch.tensor(group["lr"], device=self.device)

    def _capture(self, batch: Batch) -> _Captured:
        static = batch.to(self.device)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Graphs run one after the other, so they can share what they leave free. The loader's thread pins memory
        # meanwhile, which a capture of all threads would take for its own.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            metrics = self._update(self._backward(static, (static.targets >= 0).sum()))
        return _Captured(graph, static, metrics)
