"""Set a run on its device and among its processes: torchrun's world, DDP or FSDP2, compiled or not, with reasons.

Launched by itself, a run is a world of one and touches no torch.distributed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core.system.errors import DeviceError, UsageError
from core.system.gpu_errors import why_unusable
from core.train.config import Plan, n_parameters
from core.train.model import Decoder

STATE_BYTES = 16       # a parameter in float32 with gradient and two moments
DDP_SHARE = 0.6        # of a GPU's memory that the state may take, so that activations have the rest
COMPILE_STEPS = 300    # compiling a layer and the head takes about as long as this many steps save


@dataclass(frozen=True, slots=True)
class DistributedContext:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sum_up(self, figures: Tensor) -> Tensor:
        """Add figures over all processes."""
        dist.all_reduce(figures)
        return figures

    def largest(self, figures: Tensor) -> Tensor:
        """Take the largest of each figure over all processes."""
        dist.all_reduce(figures, dist.ReduceOp.MAX)
        return figures

    def wait(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: str, plan: Plan) -> DistributedContext:
    """Start torch on the device, and join the other processes; DeviceError, UsageError."""
    rank, size, local = int(os.environ.get("RANK", "0")), world_size(), int(os.environ.get("LOCAL_RANK", "0"))
    if size > 1 and plan.batch % size:
        raise UsageError(f"--batch {plan.batch} does not divide among {size} processes. Give a multiple of {size}.")
    if device.startswith("cuda"):
        device = f"cuda:{local}" if size > 1 else device
        why_not = why_unusable(device)
        if why_not:
            instead = "--device cpu, or fewer processes" if size > 1 else "--device cpu"
            raise DeviceError(f"{device} is there, but {why_not}. Use {instead}.")
        torch.cuda.set_device(torch.device(device))
    if size > 1:
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return DistributedContext(rank, size, torch.device(device))


def leave(world: DistributedContext) -> None:
    """Leave the other processes."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def choose_compile(wanted: str, plan: Plan, device: torch.device) -> tuple[bool, str]:
    """Say whether to compile, and why."""
    if wanted != "auto":
        return wanted == "on", "asked for"
    if device.type != "cuda":
        return False, "compiling for a CPU takes longer than it saves in a run of this size"
    if plan.steps < COMPILE_STEPS:
        return False, f"{plan.steps} steps save less than compiling takes (from {COMPILE_STEPS} steps on it pays)"
    return True, f"{plan.steps} steps save more than compiling takes"


def choose_parallel(wanted: str, plan: Plan, world: DistributedContext) -> tuple[str, str]:
    """Say how the processes share the work, and why: none, ddp or fsdp2."""
    if world.size == 1:
        return "none", "one process"
    if wanted != "auto":
        return wanted, "asked for"
    need = STATE_BYTES * n_parameters(plan.arch)
    if world.device.type == "cuda":
        room = torch.cuda.get_device_properties(world.device).total_memory
        if need > DDP_SHARE * room:
            return "fsdp2", f"the state takes {need >> 20} MiB, more than {DDP_SHARE:.0%} of a GPU's {room >> 20} MiB"
    return "ddp", f"the state takes {need >> 20} MiB, which fits in each process"


def wrap(
    model: Decoder, parallel: str, is_compiled: bool, world: DistributedContext
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what runs the model: itself, compiled by parts, in DDP or FSDP2."""
    if is_compiled:  # one layer's code serves all layers, so this takes seconds where the whole model takes minutes
        for block in model.blk:
            block.compile()
        model.loss = torch.compile(model.loss)  # type: ignore[method-assign]
    if parallel == "ddp":
        return cast(Callable[[Tensor, Tensor], Tensor], nn.parallel.DistributedDataParallel(
            model, device_ids=[world.device] if world.device.type == "cuda" else None, broadcast_buffers=False))
    if parallel == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(world.device.type, (world.size,))
        for block in model.blk:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def gather(state: dict[str, Any]) -> dict[str, Tensor]:
    """Bring tensors together that are spread over processes; every process must call it."""
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().cpu() for name, t in state.items()}
