"""Like What You Like: Knowledge Distill via Neuron Selectivity Transfer. Huang, Wang, 2017.
https://arxiv.org/abs/1707.01219

The squared MMD with the kernel (a . b)^2, written with matrix products; the teacher's constant term stays in.
"""

from torch import Tensor

from .adapters import same_size, stages, unit
from .base import Batch, Distiller, Output, Pair


def mmd(s: Tensor, t: Tensor) -> Tensor:
    """s [B, C_s, N], t [B, C_t, N]: unit vectors over N places. Mean over the batch.

    With S = s's and T = t't the three kernel means are the parts of |S / C_s - T / C_t|^2, so that N x N matrices
    suffice; where there are more places than channels, the C x C products are smaller.
    """
    batch, c_s, places = s.shape
    c_t = t.shape[1]
    if places <= max(c_s, c_t):
        return (s.mT @ s / c_s - t.mT @ t / c_t).square().sum() / batch
    ss, tt, st = ((a @ b.mT).square().mean((1, 2)) for a, b in ((s, s), (t, t), (s, t)))
    return (ss + tt - 2 * st).mean()


class NST(Distiller, name="nst"):
    """Matches the distributions of channel activation patterns, stage by stage.

    Raises ValueError where a network returns no stage maps.
    """

    weights = (1.0, 0.0, 50.0)
    reads = ("feats",)

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        stages(pair.s, pair.t)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return sum(mmd(*(unit(f.flatten(2)) for f in same_size(f_s, f_t))) for f_s, f_t in stages(s, t))
