"""Share a measurement among the processes that torchrun started; a process by itself is a world of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def is_mine(self, index: int) -> bool:
        """Whether this process does that one of several alike."""
        return index % self.size == self.rank

    def share(self, mine: dict[int, T]) -> dict[int, T]:
        """What all processes have found, in order of the indices; all of them call it."""
        every: list[Any] = [mine]
        if self.size > 1:
            import torch.distributed as dist

            every = [None] * self.size
            dist.all_gather_object(every, mine)
        return dict(sorted((index, found) for part in every for index, found in part.items()))


ALONE = Ranks()


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join torchrun's processes over gloo, and leave them after."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
