"""Batches of the next steps made in a thread while a GPU is busy with this one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from foreword.pretrain.batch import Batch


class Ahead:
    """Makes the batches of a step; with a depth, those of so many further steps behind the caller's back.

    What a step gets is a function of the step alone, so nothing depends on how far the thread has come.
    """

    def __init__(self, make: Callable[[int], list[Batch]], depth: int) -> None:
        self.make, self.depth = make, depth
        self.pool = ThreadPoolExecutor(1) if depth else None
        self.coming: dict[int, Future[list[Batch]]] = {}

    def take(self, step: int) -> list[Batch]:
        """Return the batches of `step`."""
        if self.pool is None:
            return self.make(step)
        for later in range(step, step + self.depth + 1):
            if later not in self.coming:
                self.coming[later] = self.pool.submit(self.make, later)
        return self.coming.pop(step).result()

    def forget(self) -> None:
        """Drop what was made ahead, because what a step gets has changed."""
        for future in self.coming.values():
            future.cancel()
        self.coming.clear()
