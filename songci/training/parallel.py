"""Several processes that train one model together: PyTorch's DistributedDataParallel, started by torchrun.

Each process computes its share of every batch, the gradients are averaged, and all make the same step. One process,
started without torchrun, is the case of rank 0 of 1.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from songci.cli import UserError


class Parallel:
    """This process among those of the run: its rank, their number, and what they tell one another."""

    def __init__(self):
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.main = self.rank == 0  # the only one that writes files

    def start(self, device: torch.device) -> torch.device:
        """Joins the other processes, by gloo on CPUs or NCCL on GPUs; returns the device, a GPU for each process."""
        if self.world == 1:
            return device
        if device.type == "cuda":
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return device

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the processes."""
        return module if self.world == 1 else nn.parallel.DistributedDataParallel(module)

    def share(self, batch: Tensor, parts: int) -> list[Tensor]:
        """This process's rows of a batch, in at most `parts` pieces."""
        own = batch.tensor_split(self.world)[self.rank]
        return [piece for piece in own.tensor_split(parts) if len(piece)]

    def agree(self, dtype: torch.dtype, device: torch.device) -> torch.dtype:
        """bfloat16 only if all processes chose it: on a CPU, that is a measurement."""
        if dtype != torch.bfloat16 or self.total(dtype == torch.bfloat16, device=device)[0] == self.world:
            return dtype
        return torch.float32

    def total(self, *values: float, device: torch.device) -> list[float]:
        """The sums of the numbers over the processes."""
        if self.world == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        return summed.tolist()

    @contextmanager
    def in_main(self, context: AbstractContextManager, device: torch.device) -> Iterator[None]:
        """Enters a context in the main process alone. If that raises UserError, the others end without a word."""
        error = None
        with ExitStack() as stack:
            try:
                if self.main:
                    stack.enter_context(context)
            except UserError as refusal:
                error = refusal
            refused = self.total(error is not None, device=device)[0]
            if error is not None:
                raise error
            if refused:
                sys.exit(2)
            yield


@contextmanager
def end_together(parallel: Parallel) -> Iterator[None]:
    """Leaves the group at the end. Raises UserError in place of the error that the death of another process causes."""
    try:
        yield
    except RuntimeError as error:
        if parallel.world == 1 or not (isinstance(error, dist.DistError) or "Connection" in str(error)):
            raise
        # torchrun ends the others when one has died; the files are whole, as at any moment
        message = str(error).splitlines()[0]
        raise UserError(f"another process of this run has ended ({message}): go on with --resume") from None
    finally:
        if parallel.world > 1 and sys.exc_info()[0] is None:
            dist.destroy_process_group()
