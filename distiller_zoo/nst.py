"""Like What You Like: Knowledge Distill via Neuron Selectivity Transfer. Huang, Wang, 2017.
https://arxiv.org/abs/1707.01219

sum_l |S / C_s - T / C_t|^2,  S = s' s, T = t' t:  s, t: maps [C, N] with channels of unit length

This is the squared MMD with the kernel (a . b)^2, as matrix products. It includes the teacher's constant term.
"""

from torch import Tensor

from .adapters import same_size, stages, unit
from .base import Batch, Distiller, Output, Pair


def mmd(s: Tensor, t: Tensor) -> Tensor:
    """s [B, C_s, N], t [B, C_t, N], unit vectors over N places. Mean over the batch.

    The N x N matrices S and T of the formula above suffice. With more places than channels, C x C products are smaller.
    """
    batch, c_s, places = s.shape
    c_t = t.shape[1]
    if places <= max(c_s, c_t):
        return (s.mT @ s / c_s - t.mT @ t / c_t).square().sum() / batch
    ss, tt, st = ((a @ b.mT).square().mean((1, 2)) for a, b in ((s, s), (t, t), (s, t)))
    return (ss + tt - 2 * st).mean()


class NST(Distiller, name="nst"):
    """Matches the distributions of channel activation patterns, stage by stage.

    Raises:
        ValueError: a network returns no stage maps.
    """

    weights = (1.0, 0.0, 50.0)
    reads = ("feats",)

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        stages(pair.s, pair.t)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return sum(mmd(*(unit(f.flatten(2)) for f in same_size(f_s, f_t))) for f_s, f_t in stages(s, t))
