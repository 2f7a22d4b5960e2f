"""FitNets: Hints for Thin Deep Nets. Romero et al., ICLR 2015. https://arxiv.org/abs/1412.6550

mean((r(F_s) - F_t)^2),  r: learned regressor

As in RepDistiller, the hint is learned together with the labels instead of in its own stage. The regressor ends in
BatchNorm and ReLU, although a teacher map without a ReLU (WRN) also has negative values.
"""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from .adapters import Regressor, full, same_size
from .base import Batch, Distiller, Output, Pair, Range


class FitNet(Distiller, name="fitnet", aliases=("hint",)):
    """Mean squared error between the regressed student map and the teacher's.

    Args:
        hint_layer: index of the map in `feats`: 0 is the stem's, n that of stage n.

    Raises:
        ValueError: a network does not have this map.
    """

    weights = (1.0, 0.0, 100.0)
    reads = ("feats",)

    def __init__(self, pair: Pair, *, hint_layer: Annotated[int, Range(int, 0, 1000)] = 2) -> None:
        super().__init__(pair)
        n_s, n_t = len(pair.s.feats), len(pair.t.feats)
        if hint_layer >= min(n_s, n_t):
            raise ValueError(f"hint_layer {hint_layer} must be in 0..{min(n_s, n_t) - 1}: {n_s} and {n_t} maps")
        self.hint_layer = hint_layer
        self.regressor = Regressor(pair.s.feats[hint_layer].shape, pair.t.feats[hint_layer].shape, relu=True)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        hint = full(t.feats[self.hint_layer].detach())
        return F.mse_loss(*same_size(self.regressor(full(s.feats[self.hint_layer])), hint))
