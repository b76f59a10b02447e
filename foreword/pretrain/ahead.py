"""Batches of the next steps made in other processes while a GPU is busy with this one."""

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from foreword.pretrain.batch import Batch

_ENDLESS = 1 << 40


class _Steps(Dataset):
    """The batches of a step, by its number."""

    def __init__(self, make: Callable[[int], list[Batch]]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> list[Batch]:
        return self.make(step)


class Ahead:
    """Makes the batches of a step; with workers, those of further steps behind the caller's back.

    What a step gets is a function of the step alone, so nothing depends on how far the workers have come. They are
    processes: a thread that drew spans held Python's lock for as long as the steps of a small model took.
    """

    def __init__(self, make: Callable[[int], list[Batch]], workers: int, pin: bool = False, depth: int = 4) -> None:
        self.make, self.workers, self.pin, self.depth = make, workers, pin, depth
        self.coming: Iterator[list[Batch]] | None = None
        self.next_step = 0

    def take(self, step: int) -> list[Batch]:
        """Return the batches of `step`."""
        if not self.workers:
            return self.make(step)
        if self.coming is None or step != self.next_step:
            self.coming = iter(self._loader(step))
        self.next_step = step + 1
        return next(self.coming)

    def forget(self) -> None:
        """Drop what was made ahead, because what a step gets has changed."""
        self.coming = None

    def _loader(self, start: int) -> DataLoader:
        return DataLoader(
            _Steps(self.make),
            batch_size=None,
            sampler=range(start, _ENDLESS),
            num_workers=self.workers,
            pin_memory=self.pin,
            prefetch_factor=self.depth,
            generator=torch.Generator(),  # it seeds workers that draw nothing
            multiprocessing_context="fork",  # they never touch the GPU, and start with this process's state
        )
