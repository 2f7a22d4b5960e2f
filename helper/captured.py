"""Records a function of tensors as a CUDA graph: one launch instead of hundreds, for which a small GPU step would wait.

https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from . import parallel
from .checkpoint import first_line
from .util import UserError

WARM_UPS = 3  # eager calls, which choose kernels, compile code and allocate buffers
Recorded = tuple[Callable[[], object], Any]  # the replay function, and the outputs that it overwrites


def stream_for(device: torch.device) -> "torch.cuda.Stream | None":
    """A new stream, if one process drives one GPU; else None."""
    alone = device.type == "cuda" and parallel.gpu_count(device) == 1 and not parallel.is_distributed()
    return torch.cuda.Stream(device) if alone else None


def on(stream: "torch.cuda.Stream | None") -> AbstractContextManager:
    return torch.cuda.stream(stream) if stream else nullcontext()


def wait_for_all(device: torch.device) -> None:
    """Waits for all streams, so that each may read what the others have written."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class CudaGraphs:
    """Records graphs on a stream. They share memory, so none may rely on what another one left there."""

    def __init__(self, stream: "torch.cuda.Stream") -> None:
        self.stream, self.pool = stream, torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Any], generators: Iterable[torch.Generator]) -> Recorded:
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        # other threads may go on meanwhile, such as the one that pins the memory of streamed images
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            outputs = function()
        return graph.replay, outputs


def recorder(graph: str, stream: "torch.cuda.Stream | None") -> CudaGraphs | None:
    """The recorder that `--graph` allows on this stream. None: nothing is recorded."""
    return CudaGraphs(stream) if stream and graph == "auto" else None


class Call:
    """All calls with inputs of one shape."""

    def __init__(self, leaves: Sequence[Any]) -> None:
        self.inputs = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
        self.made, self.numbers, self.recorded = 0, None, None

    def fill(self, leaves: Sequence[Any]) -> None:
        pairs = [(mine, x) for mine, x in zip(self.inputs, leaves, strict=True) if isinstance(x, Tensor)]
        torch._foreach_copy_(*zip(*pairs, strict=True), non_blocking=True)


class Captured:
    """`function`, recorded for each shape of its inputs. It may change tensors in place or return new ones.

    The first calls of a shape run eagerly. Inputs are copied into static tensors. The next call overwrites the outputs.

    Args:
        function: what to record.
        record: a `CudaGraphs`, or a test's replacement.
        numbers: returns what else the function reads; a change needs a new recording.
        generators: returns the generators that the function draws from.

    Raises:
        UserError: the function cannot be recorded.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        record: Callable[[Callable[[], Any], Iterable[torch.Generator]], Recorded],
        numbers: Callable[[], Hashable] = tuple,
        generators: Callable[[], Iterable[torch.Generator]] = tuple,
    ) -> None:
        self.function, self.record, self.numbers, self.generators = function, record, numbers, generators
        self.calls: dict[Hashable, Call] = {}

    def __call__(self, *given: Any) -> Any:
        leaves, tree = tree_flatten(given)
        key = tuple((x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        if key not in self.calls:
            self.calls[key] = Call(leaves)
        call = self.calls[key]
        call.fill(leaves)
        call.made += 1
        function = functools.partial(self.function, *tree_unflatten(call.inputs, tree))
        if call.made <= WARM_UPS:
            return function()
        numbers = self.numbers()
        if call.recorded is None or call.numbers != numbers:
            call.recorded, call.numbers = None, numbers  # frees the old graph's memory for the new one
            try:
                call.recorded = self.record(function, self.generators())
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = first_line(error)
                raise UserError(f"--graph auto: a step cannot be recorded: {reason}; try --graph off") from error
        replay, outputs = call.recorded
        replay()
        return outputs
