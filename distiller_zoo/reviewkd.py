"""Distilling Knowledge via Knowledge Review. Chen et al., CVPR 2021. https://arxiv.org/abs/2104.09044

sum_l h(u_l, g_l),  u_l: fused from the student's stages l .. n,  h: mean squared errors of maps and pooled maps

Differs: networks of unequal depth are paired from the deep end. As in the authors' code for CIFAR, the student's maps
are taken after their ReLU, the teacher's (g) before.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import BatchNorm, full, pair_maps
from .base import Batch, Distiller, Output, Pair


def convolution(c_in: int, c_out: int, size: int) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, BatchNorm(c_out))


class Fusion(nn.Module):
    """Fuses a student map with the fused deeper maps by attention, and predicts the teacher's map."""

    def __init__(self, c_s: int, mid: int, c_t: int, deepest: bool) -> None:
        super().__init__()
        self.reduce, self.predict = convolution(c_s, mid, 1), convolution(mid, c_t, 3)
        self.attention = None if deepest else nn.Conv2d(2 * mid, 2, 1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """size: height and width of the teacher's map. Returns the prediction and the fused map."""
        x = self.reduce(x)
        if self.attention is not None:
            y = F.interpolate(deeper, x.shape[2:], mode="nearest")
            gates = self.attention(torch.cat([x, y], 1)).sigmoid()
            x = x * gates[:, :1] + y * gates[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="nearest")
        return self.predict(x), x


def hierarchical(f_s: Tensor, f_t: Tensor) -> Tensor:
    """Mean squared errors of the maps, and of their averages over 4x4, 2x2 and 1x1 cells.

    Each has half the previous weight.
    """
    loss, weight, total = F.mse_loss(f_s, f_t), 1.0, 1.0
    for cells in (4, 2, 1):
        if cells < f_s.shape[2]:
            weight, total = weight / 2, total + weight / 2
            loss = loss + weight * F.mse_loss(*(F.adaptive_avg_pool2d(f, cells) for f in (f_s, f_t)))
    return loss / total


class ReviewKD(Distiller, name="reviewkd", aliases=("review",)):
    """Predicts every stage of the teacher from that stage of the student and all deeper ones.

    Published -b: 5 (resnet8x4, WRN), 8 (ShuffleNetV2), 0.6 (resnet20), 1 (resnet32).
    """

    weights = (1.0, 0.0, 5.0)
    warm_up = 20
    widest = 512

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        levels = self.levels(pair.s, pair.t)
        mid = min(self.widest, pair.s.pooled.shape[1])
        self.fusions = nn.ModuleList(Fusion(a.shape[1], mid, b.shape[1], not i) for i, (a, b) in enumerate(levels))

    @staticmethod
    def levels(s: Output, t: Output) -> list[tuple[Tensor, Tensor]]:
        """Pairs of student and teacher maps, the deepest first. The pooled features count as maps of one cell."""
        pooled = [o.pooled[:, :, None, None] for o in (s, t)]
        pairs = [tuple(pooled), *reversed(pair_maps(s.feats[1:], t.preacts[1:]))]
        return [(full(f_s), full(f_t.detach())) for f_s, f_t in pairs]

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        loss, fused = 0.0, None
        for fusion, (f_s, f_t) in zip(self.fusions, self.levels(s, t), strict=True):
            predicted, fused = fusion(f_s, fused, f_t.shape[2:])
            loss = loss + hierarchical(predicted, f_t)
        return loss
