"""Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation, on features. Lv, Yang, Li,
NeurIPS 2024. https://arxiv.org/abs/2412.08139

ratio |m_s - m_t|^2 + |d_s - d_t|^2,  m, d: mean and deviation of each channel of the last map

Differs: cells of a single value have deviation 0. The authors' weight falls to 0 by a cosine after epoch 150; here it
stays.
"""

from torch import Tensor

from .adapters import Regressor, full, same_size
from .base import Batch, Distiller, Output, Pair, Weight, Width


def cells(f: Tensor, grid: int) -> list[Tensor]:
    """Cuts the map into grid x grid cells as adaptive pooling does, each [B, C, values]."""
    (h, w), steps = f.shape[2:], range(grid)
    rows, columns = ([slice(i * n // grid, -(-(i + 1) * n // grid)) for i in steps] for n in (h, w))
    return [f[:, :, row, column].flatten(2) for row in rows for column in columns]


class WKDF(Distiller, name="wkd_f"):
    """Wasserstein distance between the channels' normal distributions, in each cell of the last maps.

    The published weights are resnet8x4's.

    Args:
        wkd_grid: cells of a map along each side, each with its own distance.
        wkd_ratio: weight of the means over that of the deviations.
    """

    weights = (1.0, 0.0, 0.08)
    reads = ("feats",)
    eps = 1e-5

    def __init__(self, pair: Pair, *, wkd_grid: Width = 1, wkd_ratio: Weight = 4.0) -> None:
        super().__init__(pair)
        self.grid, self.ratio = wkd_grid, wkd_ratio
        self.regressor = Regressor(pair.s.feats[-1].shape, pair.t.feats[-1].shape, relu=True)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return self.distance(*same_size(self.regressor(full(s.feats[-1])), full(t.feats[-1].detach())))

    def distance(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        grid, means, deviations = min(self.grid, *f_s.shape[2:]), 0.0, 0.0
        for a, b in zip(cells(f_s, grid), cells(f_t, grid), strict=True):
            means = means + (a.mean(2) - b.mean(2)).square().sum(1).mean()
            unbiased = min(a.shape[2] - 1, 1)
            std_a, std_b = ((x.var(2, correction=unbiased) + self.eps).sqrt() for x in (a, b))
            deviations = deviations + (std_a - std_b).square().sum(1).mean()
        return (self.ratio * means + deviations) / grid**2
