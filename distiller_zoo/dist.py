"""Knowledge Distillation from A Stronger Teacher. Huang et al., NeurIPS 2022. https://arxiv.org/abs/2205.10536

T^2 (beta (1 - mean_i corr(p_s[i], p_t[i])) + gamma (1 - mean_k corr(p_s[:, k], p_t[:, k]))),  p = softmax(z / T)

Differs: a row or column that is constant to within rounding has correlation 0, and a gradient of order one.
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import centred, full
from .base import Batch, Distiller, Output, Pair, Temperature, Weight


def correlation(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along dim."""
    (x, square_x), (y, square_y) = centred(x, dim), centred(y, dim)
    return (x * y).sum(dim) / ((square_x.sqrt() * square_y.sqrt()).squeeze(dim) + 1e-8)


class DIST(Distiller, name="dist"):
    """Correlates the networks' probabilities, over the classes of each sample and over the samples of each class.

    Args:
        dist_beta: weight of the correlation over the classes.
        dist_gamma: weight of the correlation over the samples.
        dist_T: temperature of the probabilities.
    """

    weights = (1.0, 0.0, 2.0)
    reads = ()
    standardisable = True
    relational = True

    def __init__(
        self, pair: Pair, *, dist_beta: Weight = 1.0, dist_gamma: Weight = 1.0, dist_T: Temperature = 4.0
    ) -> None:
        super().__init__(pair)
        self.beta, self.gamma, self.T = dist_beta, dist_gamma, dist_T

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        p_s, p_t = (F.softmax(full(z) / self.T, dim=1) for z in (s.logits, t.logits.detach()))
        inter, intra = (1 - correlation(p_s, p_t, dim).mean() for dim in (1, 0))
        return self.T**2 * (self.beta * inter + self.gamma * intra)
