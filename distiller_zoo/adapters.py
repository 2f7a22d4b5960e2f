"""What several methods share: precision, unit vectors, pairing of maps, and the layers between two networks."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Batch, Output


def full(x: Tensor) -> Tensor:
    """float32, or float64 where x already is: losses do not run in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def labels_of(s: Output, batch: Batch) -> Tensor:
    """A label for each row of the outputs: every view of a sample has its label."""
    return batch.labels.repeat_interleave(len(s.logits) // len(batch.labels))


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x divided by its L2 norm along dim. A zero vector stays zero and its gradient stays of order one.

    F.normalize divides by a floor of 1e-12 there, so that one dead sample sends gradients of 1e12 back.
    """
    square = x.square().sum(dim, keepdim=True)
    return x * torch.where(square > 1e-24, square, 1.0).rsqrt()


def pair_maps(s: Sequence[Tensor], t: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Student and teacher maps side by side. Networks of unequal depth are paired from the deep end.

    The last maps mean the same in any two classifiers, the first need not: a network that has one stage more has
    it at the front, at a resolution that the other never computes. Raises ValueError where a side has no map.
    """
    n = min(len(s), len(t))
    if n == 0:
        raise ValueError(f"both networks must return stage maps, not {len(s)} (student) and {len(t)} (teacher)")
    return list(zip(s[-n:], t[-n:], strict=True))


def stages(s: Output, t: Output, stem: bool = False) -> list[tuple[Tensor, Tensor]]:
    """The stage maps of both networks, without the stem unless asked for, paired; the teacher's without a gradient."""
    first = 0 if stem else 1
    return [(full(f_s), full(f_t.detach())) for f_s, f_t in pair_maps(s.feats[first:], t.feats[first:])]


def same_size(
    s: Tensor, t: Tensor, pool: Callable[[Tensor, tuple[int, int]], Tensor] = F.adaptive_avg_pool2d
) -> tuple[Tensor, Tensor]:
    """Two maps [B, C, H, W] with the larger pooled, by default averaged, to the smaller's height and width."""
    size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
    s, t = (x if x.shape[2:] == size else pool(x, size) for x in (s, t))
    return s, t


class UnitLinear(nn.Linear):
    """A linear embedding of pooled features, scaled to the unit sphere; any input precision."""

    def __init__(self, width: int, feat_dim: int) -> None:
        super().__init__(width, feat_dim)

    def forward(self, x: Tensor) -> Tensor:
        return unit(super().forward(x.to(self.weight.dtype)))


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that uses its running statistics for a single value per channel, where torch raises."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class Regressor(nn.Module):
    """Student map -> a map of the teacher's shape: convolution, BatchNorm, and ReLU where relu is True.

    Half the student's size: 3x3, stride 2. Twice: 4x4 transposed, stride 2. Smaller or equal: the unpadded kernel
    that leaves the teacher's size (1x1 for equal sizes). Otherwise 1x1 at the student's size, and the caller pools
    the teacher's map (RepDistiller has no rule for this case).
    """

    def __init__(self, s: torch.Size, t: torch.Size, relu: bool) -> None:
        super().__init__()
        (c_s, h_s, w_s), (c_t, h_t, w_t) = s[1:], t[1:]
        if (h_s, w_s) == (2 * h_t, 2 * w_t):
            self.conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
        elif (2 * h_s, 2 * w_s) == (h_t, w_t):
            self.conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
        elif h_s >= h_t and w_s >= w_t:
            self.conv = nn.Conv2d(c_s, c_t, (1 + h_s - h_t, 1 + w_s - w_t))
        else:
            self.conv = nn.Conv2d(c_s, c_t, 1)
        self.bn = BatchNorm(c_t)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x
