"""The processes of a run: who am I, how are gradients summed, who writes.

One process is the plain case of many: it has a `DeviceMesh` of size 1 and takes the same path through the loop. Every rank knows
the whole plan of a global batch, so only sums ever cross the wire: gradients, the loss and the wish to stop, in one flat all-reduce
a step. Nothing is synchronised inside a step, so ranks may have bins of different sizes.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from luthier.engine.allocator import keep_freed_memory

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """The processes of this run, seen from one of them.

    Attributes:
        rank: this process, from 0.
        size: number of processes.
        device: where this process computes.
        mesh: one dimension, `data`: every rank holds all weights and a share of each global batch.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh

    @property
    def main(self) -> bool:
        """True on the one rank that writes files and talks to people."""
        return self.rank == 0

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over ranks, as one message for each device and dtype."""
        if self.size == 1:
            return
        group = self.mesh.get_group("data")
        for kind in dict.fromkeys((tensor.device, tensor.dtype) for tensor in tensors):
            same = [tensor for tensor in tensors if (tensor.device, tensor.dtype) == kind]
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            dist.all_reduce(flat, group=group)
            for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def gathered(self, mine: T) -> list[T]:
        """What each rank has, by rank, on all of them; for a few objects of Python."""
        if self.size == 1:
            return [mine]
        found: list[T] = [mine] * self.size
        dist.all_gather_object(found, mine, group=self.mesh.get_group("data"))
        return found

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier(group=self.mesh.get_group("data"))


def start_world() -> World:
    """Join the processes that torchrun started, or be the only one."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cpu":
        keep_freed_memory()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if size == 1:
            alone = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group("gloo", store=alone, rank=0, world_size=1)
        else:
            dist.init_process_group(backend, timeout=timedelta(hours=2))
        atexit.register(_leave)  # gloo's threads must end before the interpreter does, or C++ aborts the process
    mesh = init_device_mesh("cpu" if size == 1 else device.type, (size,), mesh_dim_names=("data",))
    return World(rank, size, device, mesh)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(local_rank: int) -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    return torch.device("cpu")
