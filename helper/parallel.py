"""Several devices: under torchrun, one process for each (DDP); otherwise one process that may drive several GPUs.

With a single process, every function does nothing, or what its docstring says.
"""

import argparse
import atexit
import contextlib
import functools
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import heartbeat
from .devices import choose_device
from .util import UserError

_hosts: distributed.ProcessGroup | None = None  # a group for CPU tensors, if the default group is nccl


def is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    return distributed.get_rank() if is_distributed() else 0


def world_size() -> int:
    return distributed.get_world_size() if is_distributed() else 1


def rank_and_world_size() -> tuple[int, int]:
    """The rank of this process and the world size, as the batches take them."""
    return rank(), world_size()


def start(opt: argparse.Namespace) -> torch.device:
    """Joins the process group that torchrun started, and returns this process's device. Only rank 0 prints.

    Raises UserError for a device that does not exist, and for options that do not fit the number of devices.
    """
    env = os.environ
    if not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        device = choose_device(opt.device, opt.amp, opt.deterministic)
        for flag in ("compile", "sync_bn"):
            if getattr(opt, flag) and gpu_count(device) > 1:
                raise UserError(
                    f"--{flag}: one process drives {gpu_count(device)} GPUs; use torchrun, or choose one by --device"
                )
        return device
    processes, here = int(env["WORLD_SIZE"]), int(env.get("LOCAL_WORLD_SIZE", 1))
    if opt.batch_size < 2 * processes:
        raise UserError(f"--batch_size {opt.batch_size}: expected at least 2 samples for each of {processes} processes")
    kind = opt.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind not in ("cuda", "cpu"):
        raise UserError(f"--device {kind}: expected cuda or cpu, as torchrun gives each process a device of its own")
    if kind == "cuda" and torch.cuda.device_count() < here:
        raise UserError(f"--device cuda: {here} processes were started for {torch.cuda.device_count()} GPUs")
    device = choose_device(f"cuda:{env['LOCAL_RANK']}" if kind == "cuda" else kind, opt.amp, opt.deterministic)
    if processes > 1 and not is_distributed():
        if kind == "cuda":
            torch.cuda.set_device(device)
        # the first process may decode a whole data set while the others wait
        backend, own = ("nccl", device) if kind == "cuda" else ("gloo", None)
        distributed.init_process_group(backend, timeout=timedelta(hours=4), device_id=own)
        if kind == "cuda":
            global _hosts
            _hosts = distributed.new_group(backend="gloo", timeout=timedelta(hours=4))
        atexit.register(distributed.destroy_process_group)
        heartbeat.start(rank(), world_size())
        if rank():
            sys.stdout = open(os.devnull, "w")
    return device


def gpu_count(device: torch.device) -> int:
    """Number of GPUs that a single process drives: all visible ones, unless --device names one."""
    return torch.cuda.device_count() if device.type == "cuda" and device.index is None and not is_distributed() else 1


def rank_zero_only(function: Callable[..., None]) -> Callable[..., None]:
    """Decorates a function that only rank 0 runs, because it writes. All processes raise its UserError."""

    @functools.wraps(function)
    def maybe(*args: Any, **kwargs: Any) -> None:
        error = None
        if not rank():
            try:
                function(*args, **kwargs)
            except UserError as found:
                error = found
        if error := all_gather(error)[0]:
            raise error

    return maybe


def barrier() -> None:
    """Waits for all processes."""
    if is_distributed():
        distributed.barrier()


@contextlib.contextmanager
def local_main_process_first() -> Iterator[None]:
    """Runs the block in each machine's first process, which may download and cache files, and then in its other
    processes.
    """
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not first:
        barrier()
    yield
    if first:
        barrier()


def all_reduce(x: Tensor) -> Tensor:
    """Sums x over the processes, in place."""
    if is_distributed():
        distributed.all_reduce(x)
    return x


def all_gather(x: Any) -> list[Any]:
    """The x of every process, in order of rank."""
    if not is_distributed():
        return [x]
    found = [None] * world_size()
    distributed.all_gather_object(found, x)
    return found


class AsyncMax:
    """The maximum of an integer over the processes, exchanged while they compute."""

    def __init__(self) -> None:
        self.pending: tuple[Tensor, Any] | None = None

    def largest(self, x: int) -> int:
        """The maximum over the processes of their previous calls' x, so that no process waits for another.

        The first call returns 0.
        """
        if not is_distributed():
            return x
        before, number = self.pending, torch.tensor(x)
        self.pending = number, distributed.all_reduce(number, distributed.ReduceOp.MAX, group=_hosts, async_op=True)
        if before is None:
            return 0
        before[1].wait()
        return int(before[0])


def own_random_numbers(seed: int) -> None:
    """Gives each process but the first another seed of the global generators, so that dropout differs between them."""
    if rank():
        mixed = hashlib.blake2b(f"{seed} of {rank()}".encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(mixed, "little"))


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on all GPUs that a single process drives. Each gets a part of the batch."""
    return nn.DataParallel(network) if gpu_count(device) > 1 else network


def ddp(step: nn.Module) -> nn.Module:
    """Wraps the step in DDP: after backward, every process has the mean of all gradients."""
    if not is_distributed():
        return step
    # an initialisation and the training leave each other's parameters unused; for buffers see `sync_buffers`
    warnings.filterwarnings("ignore", message=".*broadcast_buffers")  # newer PyTorch renames it
    return nn.parallel.DistributedDataParallel(step, broadcast_buffers=False, find_unused_parameters=True)


def no_sync(step: nn.Module, alone: bool) -> contextlib.AbstractContextManager:
    """If `alone`, backward does not reduce the gradients of a `ddp` step. A later backward reduces their sum."""
    return step.no_sync() if alone and is_distributed() else contextlib.nullcontext()


@torch.no_grad()
def sync_buffers(*networks: nn.Module | None) -> None:
    """Makes buffers equal in all processes: BatchNorm statistics become their mean, other buffers rank 0's.

    Other buffers (banks, queues) are already equal, except for rounding if GPUs choose different kernels.
    """
    for network in networks if is_distributed() else ():
        for module in network.modules() if network else ():
            for buffer in module.buffers(recurse=False):
                own = buffer.clone() if isinstance(module, _BatchNorm) and buffer.is_floating_point() else None
                distributed.broadcast(buffer, 0)
                if own is not None:
                    buffer += all_reduce(own - buffer) / world_size()  # equal buffers stay equal, bit for bit


def batch_norm_buffers(*networks: nn.Module) -> list[Tensor]:
    """BatchNorm's buffers, which differ between processes until `sync_buffers`."""
    modules = [module for network in networks if is_distributed() for module in network.modules()]
    return [buffer for module in modules if isinstance(module, _BatchNorm) for buffer in module.buffers(recurse=False)]
