"""Simple feature distillation of The State of Knowledge Distillation for Classification. Ruffy, Chahal, 2019.
https://arxiv.org/abs/1912.10850

sum_l max over samples of |m_s - m_t|_2,  m: maximum of each channel of map l

Differs: the distance is between the samples' vectors. The survey's code measures it over an axis of length one, so that
in each step one channel of one sample learns; `--sfd_norm max` is that.
"""

from typing import Literal

import torch
from torch import Tensor

from .adapters import full, pair_maps
from .base import Batch, Distiller, Output, Pair


class SFD(Distiller, name="sfd", aliases=("fd",)):
    """Distance between the channels' global maxima: the largest in the batch, summed over stem and stages.

    Args:
        sfd_norm: length of a difference: `l2`, or `max`, its largest element.
        sfd_reduce: the batch's largest distance (`max`), or the `mean`.

    Raises:
        ValueError: paired maps differ in channels.
    """

    weights = (1.0, 0.0, 1.0)
    reads = ("feats",)
    relational = True  # the maximum is over the whole batch
    eps = 0.0  # the survey adds 1e-6 to every difference, so that equal maps have a distance

    def __init__(
        self, pair: Pair, *, sfd_norm: Literal["l2", "max"] = "l2", sfd_reduce: Literal["max", "mean"] = "max"
    ) -> None:
        super().__init__(pair)
        pairs = pair_maps(pair.s.feats, pair.t.feats)
        c_s, c_t = ([f[side].shape[1] for f in pairs] for side in (0, 1))
        if c_s != c_t:
            raise ValueError(f"sfd needs equal channels, not {c_s} and {c_t}")
        self.order = 2 if sfd_norm == "l2" else torch.inf
        self.reduce = sfd_reduce

    def compared(self, o: Output) -> Output:
        return o._replace(feats=tuple(f.amax((2, 3), keepdim=True) for f in o.feats), preacts=())

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        total = 0.0
        for f_s, f_t in pair_maps(s.feats, t.feats):
            difference = full(f_s).amax((2, 3)) - full(f_t.detach()).amax((2, 3)) + self.eps
            distance = torch.linalg.vector_norm(difference, self.order, dim=1)  # its gradient at zero is zero
            total = total + (distance.mean() if self.reduce == "mean" else distance.amax())
        return total
