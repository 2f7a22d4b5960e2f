"""Paying More Attention to Attention. Zagoruyko, Komodakis, ICLR 2017. https://arxiv.org/abs/1612.03928

sum_l mean((a_s - a_t)^2),  a = q / |q|,  q = mean over channels of F_l^p

As in RepDistiller, squares are averaged over space, where the paper takes the norm; hence the weight of 1000. Other
projects: `--at_p 1 --at_stem -b 30` is the linear variant on all maps, `--at_last 2` the two deepest stages, as trained
on ImageNet.
"""

from typing import Annotated

from torch import Tensor

from .adapters import same_size, stages, unit
from .base import Batch, Distiller, Output, Pair, Power, Range


class AT(Distiller, name="at", aliases=("attention",)):
    """Compares attention maps: channels raised to at_p and averaged, scaled to unit length per sample.

    Sums over the stages.

    Args:
        at_p: power to which the channels are raised.
        at_stem: include the stem's map.
        at_last: number of maps, counted from the deepest; 0: all.

    Raises:
        ValueError: at_last is larger than the number of maps.
    """

    weights = (1.0, 0.0, 1000.0)
    reads = ("feats",)

    def __init__(
        self,
        pair: Pair,
        *,
        at_p: Power = 2,
        at_stem: bool = False,
        at_last: Annotated[int, Range(int, 0, 1000)] = 0,
    ) -> None:
        super().__init__(pair)
        self.p, self.stem, self.last = at_p, at_stem, at_last
        if at_last > (n := len(stages(pair.s, pair.t, stem=at_stem))):
            raise ValueError(f"at_last {at_last} is more than the {n} maps that both networks return")

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        total = 0.0
        for f_s, f_t in stages(s, t, stem=self.stem)[-self.last :]:
            a_s, a_t = (unit(f.pow(self.p).mean(1).flatten(1)) for f in same_size(f_s, f_t))
            total = total + self.difference(a_s, a_t)
        return total

    def difference(self, a_s: Tensor, a_t: Tensor) -> Tensor:
        """Distance of two attention maps [B, H * W], a scalar."""
        return (a_s - a_t).square().mean()
