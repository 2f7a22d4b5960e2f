"""Paying More Attention to Attention. Zagoruyko, Komodakis, ICLR 2017. https://arxiv.org/abs/1612.03928

Differs, as RepDistiller does: the mean over space of the squared difference, where the paper takes the norm of the
difference; hence the weight of 1000. `at_p 1` is the linear map that other projects use (with a weight near 30).
"""

from torch import Tensor

from .adapters import same_size, stages, unit
from .base import Batch, Distiller, Output, Pair


class AT(Distiller, name="at", aliases=("attention",)):
    """Compares maps of where a stage is active: channels raised to at_p and averaged, unit length per sample.

    Sum over stages. Raises ValueError where a network returns no stage maps.
    """

    weights = (1.0, 0.0, 1000.0)

    def __init__(self, pair: Pair, *, at_p: int = 2) -> None:
        super().__init__(pair)
        stages(pair.s, pair.t)
        self.p = at_p

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        total = 0.0
        for f_s, f_t in stages(s, t):
            a_s, a_t = (unit(f.pow(self.p).mean(1).flatten(1)) for f in same_size(f_s, f_t))
            total = total + (a_s - a_t).square().mean()
        return total
