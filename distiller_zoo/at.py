"""Paying More Attention to Attention. Zagoruyko, Komodakis, ICLR 2017. https://arxiv.org/abs/1612.03928

Differs, as RepDistiller does: the mean over space of the squared difference, where the paper takes the norm of the
difference; hence the weight of 1000. Other projects: `--at_p 1 --at_stem -b 30` is the linear variant on all maps,
`--at_last 2` the two deepest stages alone, as trained on ImageNet.
"""

from typing import Annotated

from torch import Tensor

from .adapters import same_size, stages, unit
from .base import Batch, Distiller, Output, Pair, Power, Range


class AT(Distiller, name="at", aliases=("attention",)):
    """Compares maps of where a stage is active: channels raised to at_p and averaged, unit length per sample.

    Sum over the stages. at_p: power to which the channels are raised. at_stem: the stem's map counts too. at_last: only
    so many of the deepest maps count; 0: all. Raises ValueError where the networks do not return that many.
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
        """Of two stages' attention, [B, H * W] each: a scalar."""
        return (a_s - a_t).square().mean()
