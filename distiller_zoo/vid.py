"""Variational Information Distillation for Knowledge Transfer. Ahn et al., CVPR 2019. https://arxiv.org/abs/1904.05835

sum_l mean((r(F_s) - F_t)^2 / v + log v) / 2,  v: learned variance of each channel

As in RepDistiller, r is three 1x1 convolutions, and the last layer's term is left out.
"""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import same_size, stages
from .base import Batch, Distiller, Output, Pair, Range


class Gaussian(nn.Module):
    """Predicts a teacher map from a student map, with a learned variance for each channel."""

    eps = 1e-5  # floor of the variance

    def __init__(self, c_s: int, c_t: int, variance: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.full((c_t,), math.log(math.expm1(variance - self.eps))))
        layers = [nn.Conv2d(c_s, c_t, 1, bias=False)]
        for _ in range(2):
            layers += [nn.ReLU(), nn.Conv2d(c_t, c_t, 1, bias=False)]
        self.regressor = nn.Sequential(*layers)

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Negative log-likelihood per element, without the constant."""
        variance = (F.softplus(self.log_scale) + self.eps).view(1, -1, 1, 1)
        return 0.5 * ((self.regressor(f_s) - f_t).square() / variance + variance.log()).mean()


class VID(Distiller, name="vid"):
    """Maximises a variational bound on the information that the stage maps share. Can be negative.

    Args:
        vid_variance: initial variance of each channel.

    Raises:
        ValueError: a network returns no stage maps.
    """

    weights = (1.0, 0.0, 1.0)
    reads = ("feats",)

    def __init__(self, pair: Pair, *, vid_variance: Annotated[float, Range(float, 0.0001, 500)] = 5.0) -> None:
        super().__init__(pair)
        maps = stages(pair.s, pair.t)
        self.levels = nn.ModuleList(Gaussian(f_s.shape[1], f_t.shape[1], vid_variance) for f_s, f_t in maps)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        pairs = zip(self.levels, stages(s, t), strict=True)
        return sum(level(*same_size(f_s, f_t)) for level, (f_s, f_t) in pairs)
