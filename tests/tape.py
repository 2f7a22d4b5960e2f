"""What stands for a CUDA graph on a CPU: notes what a function computes, and computes it again in the same memory."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = "_local_scalar_dense is_nonzero equal nonzero masked_select _unique2 unique_dim bincount histc".split()
SOLVERS = (
    "_linalg_eigh linalg_eig _linalg_svd linalg_qr _linalg_check_errors".split()
)  # which read whether they converged
DRAWS = "rand randn randint randperm bernoulli bernoulli_ normal normal_ uniform_ multinomial native_dropout".split()


def tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


class Guard(TorchDispatchMode):
    """Raises for what a step that is recorded must not do.

    generators: those that were registered; of others the numbers would be the same in every replay.
    """

    def __init__(self, generators: Iterable[torch.Generator] = ()) -> None:
        super().__init__()
        self.generators = list(generators)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        assert name not in READS, f"{func} reads values on the host, or has a shape that depends on them"
        assert name not in SOLVERS, f"{func} reads on the host how it went"
        assert name != "lift_fresh", f"{func} copies a value from the host"
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} has a mask, whose number of elements is read on the host"
        if name in DRAWS:
            # each call of an operation has a Python object of its own for it
            states = [g.get_state() for g in self.generators]
            own = kwargs.get("generator") and kwargs["generator"].get_state()
            assert own is not None and any(torch.equal(own, state) for state in states), (
                f"{func} draws from a foreign generator"
            )
        return func(*args, **kwargs)


class Tape(Guard):
    """Records as `captured.CudaGraphs` does. The Python code of the function runs once, in its recording."""

    made = 0  # recordings of all tapes

    def __call__(self, function: Callable[[], Any], generators: Iterable[torch.Generator]) -> tuple:
        tape = type(self)(generators)
        tape.calls = []
        type(self).made += 1
        with tape:
            outputs = function()
        left = [tape.calls]

        @torch.no_grad()
        def replay() -> None:
            if left:  # what a recording computes on a CPU, the first replay would compute once more
                left.clear()
                return
            for func, args, kwargs, found in tape.calls:
                for old, new in zip(tensors(found), tensors(func(*args, **kwargs)), strict=True):
                    if old.untyped_storage().data_ptr() not in {
                        x.untyped_storage().data_ptr() for x in tensors((args, kwargs))
                    }:
                        old.copy_(new)

        return replay, outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append((func, args, kwargs or {}, found))
        return found
