"""All-gather of the outputs, for losses that compare samples. Each process has run the networks on its own part of the
batch.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from .base import Output, Shared


class _Gather(torch.autograd.Function):
    """All-gather of rows, in order of rank.

    Every process computes the same loss from all rows, so the gradient of its own rows needs no reduction. It is
    multiplied by the world size, because DDP will divide by it.
    """

    @staticmethod
    def forward(ctx, x: Tensor, sizes: list[int], rank: int) -> Tensor:
        start = sum(sizes[:rank])
        ctx.rows, ctx.world = slice(start, start + sizes[rank]), len(sizes)
        padded = x.new_zeros(max(sizes), *x.shape[1:])  # all_gather needs equal shapes
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.rows] * ctx.world, None, None


def gather(output: Output, whole: Shared) -> Output:
    """The Output of the whole batch. Views of a sample stay side by side; None stays None."""
    views = len(output.logits) // whole.sizes[whole.rank]
    sizes = [n * views for n in whole.sizes]

    def rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else _Gather.apply(x, sizes, whole.rank)

    feats, preacts, dist = (tuple(map(rows, parts)) for parts in (output.feats, output.preacts, output.dist))
    return Output(rows(output.logits), feats, preacts, rows(output.pooled), dist)
