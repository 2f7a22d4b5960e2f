"""Relational Knowledge Distillation. Park et al., CVPR 2019. https://arxiv.org/abs/1904.05068

w_d smooth_l1(D_s, D_t) + w_a smooth_l1(A_s, A_t),  D: distances over their mean,  A: cosines of angles

Differs: computed from inner products of the centred batch, without a [B, B, D] tensor. Rows that are equal to within
rounding have a defined gradient, zero.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters import full
from .base import Batch, Distiller, Output, Pair, Weight


def relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [B, B] divided by their mean, and cosines [i, j, k] of the angle at i between j and k, [B, B, B]."""
    x = full(x)
    x = x - x.mean(0).detach()  # differences stay the same, rounding gets smaller
    gram = x @ x.T
    norm = gram.diagonal()
    both = norm.unsqueeze(0) + norm.unsqueeze(1)
    square = both - 2 * gram
    apart = square > 8 * torch.finfo(x.dtype).eps * both  # smaller values are rounding; the diagonal is zero
    apart.fill_diagonal_(False)
    square = torch.where(apart, square, 0.0)
    off_diagonal = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    distance = torch.where(off_diagonal, square.clamp_min(1e-12).sqrt(), 0.0)
    mean = distance.sum() / max(len(x) * (len(x) - 1), 1)
    distance = distance / torch.where(mean > 0, mean, 1.0)
    inverse = torch.where(apart, torch.where(apart, square, 1.0).rsqrt(), 0.0)
    # (x_j - x_i) . (x_k - x_i), then divided by both lengths
    dots = gram.unsqueeze(0) - gram.unsqueeze(2) - gram.unsqueeze(1) + norm.view(-1, 1, 1)
    return distance, dots * inverse.unsqueeze(2) * inverse.unsqueeze(1)


class RKD(Distiller, name="rkd"):
    """Smooth-L1 between the networks' distances and angles of pooled features. The averages include zero diagonals.

    Args:
        rkd_distance: weight of the distances between two samples.
        rkd_angle: weight of the angles between three.
    """

    weights = (1.0, 0.0, 1.0)
    reads = ()
    relational = True

    def __init__(self, pair: Pair, *, rkd_distance: Weight = 25.0, rkd_angle: Weight = 50.0) -> None:
        super().__init__(pair)
        if not (rkd_distance or rkd_angle):
            raise ValueError("rkd_distance and rkd_angle are both 0")
        self.w_distance, self.w_angle = rkd_distance, rkd_angle

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        (d_s, a_s), (d_t, a_t) = relations(s.pooled), relations(t.pooled.detach())
        return self.w_distance * F.smooth_l1_loss(d_s, d_t) + self.w_angle * F.smooth_l1_loss(a_s, a_t)
