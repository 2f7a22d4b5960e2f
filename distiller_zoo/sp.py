"""Similarity-Preserving Knowledge Distillation. Tung, Mori, ICCV 2019. https://arxiv.org/abs/1907.09682

Differs, as RepDistiller does: only the last map by default; `sp_maps all` sums over every map, the stem included.
"""

from typing import Literal

from torch import Tensor

from .adapters import full, pair_maps, unit
from .base import Batch, Distiller, Output, Pair


def similarity(f: Tensor) -> Tensor:
    """Inner products of the flattened samples, [B, B], each row of unit length."""
    f = full(f).flatten(1)
    return unit(f @ f.T)


class SP(Distiller, name="sp", aliases=("similarity",)):
    """Samples that are alike to the teacher shall be alike to the student. Map sizes are free.

    sp_maps: the `last` map alone, or the sum over `all`, the stem included.
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
