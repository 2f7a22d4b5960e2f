"""Similarity-Preserving Knowledge Distillation. Tung, Mori, ICCV 2019. https://arxiv.org/abs/1907.09682

mean((G_s - G_t)^2),  G = F F' of the flattened samples, [B, B], with rows of unit length

As in RepDistiller, only the last map counts by default; `sp_maps all` sums over all maps and the stem.
"""

from typing import Literal

from torch import Tensor

from .adapters import full, pair_maps, unit
from .base import Batch, Distiller, Output, Pair


def similarity(f: Tensor) -> Tensor:
    """Inner products of the flattened samples, [B, B], with rows of unit length."""
    f = full(f).flatten(1)
    return unit(f @ f.T)


class SP(Distiller, name="sp", aliases=("similarity",)):
    """Matches the samples' similarities. Maps may have any size.

    Args:
        sp_maps: the `last` map only, or the sum over `all`, including the stem.
    """

    weights = (1.0, 0.0, 3000.0)
    reads = ("feats",)
    relational = True

    def __init__(self, pair: Pair, *, sp_maps: Literal["last", "all"] = "last") -> None:
        super().__init__(pair)
        pair_maps(pair.s.feats, pair.t.feats)
        self.first = -1 if sp_maps == "last" else 0

    def compared(self, o: Output) -> Output:
        return o._replace(feats=o.feats[self.first :], preacts=())

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        pairs = pair_maps(s.feats, t.feats)[self.first :]
        return sum((similarity(f_t.detach()) - similarity(f_s)).square().mean() for f_s, f_t in pairs)
