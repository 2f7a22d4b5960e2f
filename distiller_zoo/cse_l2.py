"""Cross entropy and L2, the first stage of Prime-Aware Adaptive Distillation. Zhang et al., ECCV 2020.
https://arxiv.org/abs/2008.01458

mean((f_s - f_t)^2),  f: pooled features

Differs: if the widths differ, which the paper does not have, the student's features pass a learned linear layer.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import full
from .base import Batch, Distiller, Output, Pair


def embedding(pair: Pair) -> nn.Module:
    """A layer from the student's feature width to the teacher's; the identity for equal widths."""
    d_s, d_t = pair.s.pooled.shape[1], pair.t.pooled.shape[1]
    return nn.Identity() if d_s == d_t else nn.Linear(d_s, d_t)


class CSEL2(Distiller, name="cse_l2", aliases=("ce_l2", "l2")):
    """Mean squared error between the pooled features."""

    weights = (1.0, 0.0, 15.0)
    reads = ()

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.embed = embedding(pair)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return F.mse_loss(self.embed(full(s.pooled)), full(t.pooled.detach()))
