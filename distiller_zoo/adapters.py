"""Shared by several methods: precision, unit vectors, pairing of maps, layers from one network's features to the
other's.
"""

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Batch, Output


def full(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it already is. Losses never run in half precision."""
    return x if x.dtype == torch.float64 else x.float()


def labels_of(s: Output, batch: Batch) -> Tensor:
    """The label of each row of the outputs. All views of a sample share its label."""
    return batch.labels.repeat_interleave(len(s.logits) // len(batch.labels))


def beside(network: nn.Module, images: Tensor, s: Output) -> Tensor:
    """Another network's logits for the images [B, C, H, W] or [B, V, C, H, W], in the student's precision."""
    half = s.logits.dtype in (torch.float16, torch.bfloat16)  # the same autocast as the loop's
    with torch.autocast(images.device.type, s.logits.dtype if half else None, enabled=half):
        return network(images.flatten(0, 1) if images.dim() == 5 else images)


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x divided by its L2 norm along dim. A zero vector stays zero, and its gradient stays of order one.

    F.normalize divides by at least 1e-12, so one dead sample would send gradients of 1e12 back.
    """
    square = x.square().sum(dim, keepdim=True)
    return x * torch.where(square > 1e-24, square, 1.0).rsqrt()


def kl_rows(log_s: Tensor, log_t: Tensor) -> Tensor:
    """KL(teacher || student) of each row, [B], from log-probabilities [B, K]. Finite if these are."""
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(1)


def is_label(z: Tensor, labels: Tensor) -> Tensor:
    """Mask [B, K]: True at each row's label."""
    return labels.unsqueeze(1) == torch.arange(z.shape[1], device=z.device)


def without(z: Tensor, dropped: Tensor) -> Tensor:
    """Logits whose softmax is 0 where `dropped` is True. They stay finite, and so do their log-probabilities."""
    return z.masked_fill(dropped, torch.finfo(z.dtype).min / 2)


def centred(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """x minus its mean along dim, and the sum of squares of the result.

    If x is constant to within rounding, the sum is 1, so that nothing is divided by rounding noise.
    """
    d = x - x.mean(dim, keepdim=True)
    square, whole = (y.square().sum(dim, keepdim=True) for y in (d, x))
    flat = square <= (8 * torch.finfo(x.dtype).eps) ** 2 * whole
    return d, torch.where(flat, 1.0, square)


def standardise(z: Tensor, dim: int = 1, eps: float = 1e-7) -> Tensor:
    """z with mean 0 and unbiased deviation 1 along dim. eps is added to the deviation."""
    d, square = centred(full(z), dim)
    return d / ((square / max(z.shape[dim] - 1, 1)).sqrt() + eps)


class ClassifierMap:
    """Finds the map [B, D, H, W] whose mean over space the classifier reads.

    It is the last feature map or, in WRN, the ReLU of the last pre-activation. If the classifier reads neither's mean,
    the pooled features count as a map of one cell. `part` is the field of an Output that was found: ("feats",),
    ("preacts",) or ().
    """

    def __init__(self, o: Output) -> None:
        self.part: tuple[str, ...] = ()
        for part, maps in (("preacts", [F.relu(x) for x in o.preacts[-1:]]), ("feats", o.feats[-1:])):
            if not maps or maps[0].shape[1] != o.pooled.shape[1]:
                continue
            largest = o.pooled.abs().amax().item()
            if torch.allclose(maps[0].mean((2, 3)), o.pooled, rtol=1e-3, atol=1e-3 * largest):
                self.part = (part,)

    def __call__(self, o: Output) -> Tensor:
        if self.part == ("feats",):
            return full(o.feats[-1])
        return F.relu(full(o.preacts[-1])) if self.part else full(o.pooled)[:, :, None, None]


def classify(head: nn.Linear, f: Tensor) -> Tensor:
    """Applies the classifier to every cell of a map: [B, D, H, W] -> [B, K, H, W]."""
    bias = None if head.bias is None else head.bias.to(f.dtype)
    return F.linear(f.movedim(1, -1), head.weight.to(f.dtype), bias).movedim(-1, 1)


def frozen(layer: nn.Module) -> nn.Module:
    """A copy whose parameters do not train."""
    return copy.deepcopy(layer).requires_grad_(False)


def pair_maps(s: Sequence[Tensor], t: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of student and teacher maps. Networks of unequal depth are paired from the deep end.

    The last maps of two classifiers correspond. An extra stage is at the front, at a resolution that the other network
    never computes. Raises ValueError if a network has no map.
    """
    n = min(len(s), len(t))
    if n == 0:
        raise ValueError(f"both networks must return stage maps, not {len(s)} (student) and {len(t)} (teacher)")
    return list(zip(s[-n:], t[-n:], strict=True))


def stages(s: Output, t: Output, stem: bool = False) -> list[tuple[Tensor, Tensor]]:
    """Paired stage maps of both networks; the teacher's are detached. stem: include the stem's maps."""
    first = 0 if stem else 1
    return [(full(f_s), full(f_t.detach())) for f_s, f_t in pair_maps(s.feats[first:], t.feats[first:])]


def same_size(
    s: Tensor, t: Tensor, pool: Callable[[Tensor, tuple[int, int]], Tensor] = F.adaptive_avg_pool2d
) -> tuple[Tensor, Tensor]:
    """Two maps [B, C, H, W]; the larger one is pooled (by default averaged) to the smaller height and width."""
    size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
    s, t = (x if x.shape[2:] == size else pool(x, size) for x in (s, t))
    return s, t


class UnitLinear(nn.Linear):
    """A linear embedding of pooled features onto the unit sphere, for inputs of any precision."""

    def __init__(self, width: int, feat_dim: int) -> None:
        super().__init__(width, feat_dim)

    def forward(self, x: Tensor) -> Tensor:
        return unit(super().forward(x.to(self.weight.dtype)))


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that uses its running statistics if each channel has a single value, where torch raises an error."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class BatchStatistics(nn.Module):
    """BatchNorm without running statistics, for relational losses: there each process sees the whole batch."""

    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() == x.shape[1]:  # torch refuses this; a copy does not change the statistics
            return self(x.expand(2, *x.shape[1:]))[:1]
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class Regressor(nn.Module):
    """Maps a student map to the teacher's shape: convolution, BatchNorm, and ReLU if `relu`.

    The kernel depends on the student's size. Twice the teacher's: 3x3, stride 2. Half: 4x4 transposed, stride 2. Larger
    or equal: the unpadded kernel that leaves the teacher's size (1x1 for equal sizes). Otherwise 1x1, and the caller
    pools the teacher's map; RepDistiller has no rule for this case.

    Args:
        s, t: shapes [B, C, H, W] of the student's and the teacher's map.
        relu: whether a ReLU follows.
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
