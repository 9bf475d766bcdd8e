"""Several processes that train one model: started by `torchrun`, they find each other by its environment variables.

Copies (DDP) hold everything in every process and add up gradients; shards (FSDP2) hold a part of every weight, gradient and optimizer
moment and gather what a block needs when it runs. Both see the same samples as a single process would, each its share of a step.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from lessen.errors import LessenError

_GROUPS = count()


class Ranks:
    """The processes of this run; one of one without torchrun."""

    def __init__(self) -> None:
        self.count = distributed.get_world_size() if distributed.is_initialized() else 1
        self.rank = distributed.get_rank() if self.count > 1 else 0

    @property
    def first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def agreed(self, value: float) -> float:
        """The first process's value, in all of them (what a clock says differs)."""
        if self.count == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(box, 0)
        return float(box)

    def barrier(self) -> None:
        """Wait for all."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The processes that torchrun started; the group is left again if it was joined here."""
    mine = "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not distributed.is_initialized()
    if mine:
        # Small sums of counts and clocks live on the CPU, so a GPU run has both back ends.
        backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
        # torchrun's store outlives a group, and a second group under the same keys may dial the addresses of the first.
        store, rank, ranks = next(rendezvous("env://"))
        store = distributed_c10d.PrefixStore(f"lessen {next(_GROUPS)}", store)
        distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    try:
        yield Ranks()
    finally:
        if mine:
            distributed.destroy_process_group()


class Shared:
    """A module whose gradients are shared by all processes.

    Args:
        module: called with a batch, returns a loss; holds the student.
        student: what is trained.
        blocks: its repeated parts, sharded one by one; None if the student is sharded already.
        ranks: the processes.
        shard: FSDP2 instead of DDP.
        partly: some parameters may get no gradient in a step (losses on early features).
    """

    def __init__(
        self,
        module: nn.Module,
        student: nn.Module,
        blocks: Sequence[nn.Module] | None,
        ranks: Ranks,
        shard: bool = False,
        partly: bool = False,
    ):
        self.module, self.student, self.ranks, self.sharded = module, student, ranks, shard and ranks.count > 1
        self._copies: DistributedDataParallel | None = None
        if self.sharded:
            if blocks is not None:
                _shard(student, blocks)
        elif ranks.count > 1:
            self._copies = DistributedDataParallel(module, find_unused_parameters=partly)

    def __call__(self, batch: Any) -> Any:
        return (self._copies or self.module)(batch)

    def adding_up(self, last: bool) -> Any:
        """Around forward and backward of one piece: gradients are exchanged after the last one only."""
        if self.sharded:
            self.student.set_requires_gradient_sync(last)  # pyright: ignore[reportCallIssue]
        return nullcontext() if self._copies is None or last else self._copies.no_sync()

    def state(self) -> dict[str, Tensor]:
        """All tensors of the student, whole, in every process."""
        if not self.sharded:
            return self.student.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        found: Any = get_model_state_dict(self.student, options=StateDictOptions(full_state_dict=True))
        return found

    def restore(self, tensors: Any) -> None:
        """Put whole tensors back into the student."""
        if not self.sharded:
            self.student.load_state_dict(tensors, strict=False)
            return
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        set_model_state_dict(self.student, tensors, options=StateDictOptions(full_state_dict=True, strict=False))


def _shard(student: nn.Module, blocks: Sequence[nn.Module]) -> None:
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        raise LessenError("shard", got=f"torch {torch.__version__}", wanted="one with FSDP2 (2.6 or later)") from None
    from torch.distributed.device_mesh import init_device_mesh

    device = next(student.parameters()).device.type
    mesh = init_device_mesh(device, (distributed.get_world_size(),))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(student, mesh=mesh)


def gathered(tensor: Tensor) -> Tensor:
    """A sharded tensor as a whole one."""
    full = getattr(tensor, "full_tensor", None)
    return full() if callable(full) else tensor  # pyright: ignore[reportReturnType]
