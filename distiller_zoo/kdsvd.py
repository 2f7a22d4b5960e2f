"""Self-supervised Knowledge Distillation Using Singular Value Decomposition. Lee, Kim, Song, ECCV 2018.
https://arxiv.org/abs/1807.06819

sum_l |R_s - R_t|^2,  R = exp(-(u - v)^2 / 8) for all entries u of stage l's and v of stage l - 1's singular vectors

Differs: singular vectors have a positive sum, because the loss depends on their sign, and a decomposition leaves it
open (behind a ReLU the leading vector has no negative entry). Gradients are the first-order change of the vectors with
damped gaps, so that equal singular values give no NaN. torch.linalg.eigh synchronises on a GPU.
"""

import torch
from torch import Tensor

from .adapters import stages, unit
from .base import Batch, Count, Distiller, Output, Pair


class KDSVD(Distiller, name="kdsvd"):
    """Compares how the leading singular vectors of each stage relate to those of the previous stage.

    Args:
        kdsvd_k: number of singular vectors of each stage.
        kdsvd_rows: a sample's matrix is [channels * height, width], as in mdistiller, instead of [places, channels].

    Raises:
        ValueError: the matrices' second sizes differ between the networks, or there are fewer than two stages.
    """

    reads = ("feats",)
    capturable = False  # eigh checks on the host whether it has converged

    def __init__(self, pair: Pair, *, kdsvd_k: Count = 1, kdsvd_rows: bool = False) -> None:
        super().__init__(pair)
        self.k, self.rows = kdsvd_k, kdsvd_rows
        s, t = zip(*(tuple(self._matrix(f).shape[1:] for f in maps) for maps in stages(pair.s, pair.t)), strict=True)
        if [n for _, n in s] != [n for _, n in t]:
            what = "widths" if kdsvd_rows else "channels"
            raise ValueError(f"kdsvd needs equal {what}, not {[n for _, n in s]} and {[n for _, n in t]}")
        if len(s) < 2 or kdsvd_k > min(min(shape) for shape in s + t):
            raise ValueError(f"kdsvd needs two stages of rank {kdsvd_k} or more, not {s} and {t}")

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        total, before = 0.0, None
        for f_s, f_t in stages(s, t):
            x_s, x_t = self._matrix(f_s), self._matrix(f_t)
            sigma, v_t = vectors(x_t, self.k)
            v_t = self.orient(v_t)
            now = follow(x_s, v_t, self.k + 3) * sigma, v_t * sigma
            if before is not None:
                r_s, r_t = (relation(a, b) for a, b in zip(now, before, strict=True))
                total = total + (r_s - r_t).square().sum() / len(x_s)
            before = now
        return total

    def _matrix(self, f: Tensor) -> Tensor:
        return f.flatten(1, 2) if self.rows else f.flatten(2).mT

    def orient(self, v: Tensor) -> Tensor:
        """Fixes the signs of the teacher's singular vectors [B, n, k]."""
        return torch.where(v.sum(1, keepdim=True) < 0, -v, v)


def relation(a: Tensor, b: Tensor) -> Tensor:
    """Radial basis function of all differences of entries, [B, n_a, n_b, k]."""
    return ((a.unsqueeze(2) - b.unsqueeze(1)).square() / -8).exp()


def decompose(x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values [B, m] and right singular vectors [B, n, m] of x [B, r, n], largest first."""
    wide = x.shape[2] > x.shape[1]
    product = x @ x.mT if wide else x.mT @ x
    square, v = torch.linalg.eigh(product.nan_to_num(0, 0, 0))  # eigh would raise for NaN; the loss becomes NaN:
    square = square + 0 * product.diagonal(dim1=1, dim2=2)
    if wide:
        v = unit(x.mT @ v, dim=1)
    return square.flip(1).clamp_min(0.0), v.flip(2)


@torch.no_grad()
def vectors(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k leading singular values, scaled to a unit vector [B, 1, k], and right singular vectors [B, n, k]."""
    square, v = decompose(x)
    return unit(square[:, None, :k].sqrt()), v[:, :, :k]


def follow(x: Tensor, target: Tensor, count: int) -> Tensor:
    """For each target [B, n, k], the most similar of x's `count` leading right singular vectors, with the target's
    sign.
    """
    with torch.no_grad():
        square, v = decompose(x)
        pick = (v[:, :, :count].mT @ target).abs().argmax(dim=1, keepdim=True)
        own = v.gather(2, pick.expand(-1, v.shape[1], -1))
        own_square = square.unsqueeze(1).gather(2, pick)
        floor = 1e-2 * torch.finfo(x.dtype).eps * square[:, :1, None] ** 2 + torch.finfo(x.dtype).tiny
        inverse = own_square / (own_square**2 + floor)
        gap = own_square - square.unsqueeze(2)
        others = torch.arange(square.shape[1], device=x.device).view(1, -1, 1) != pick
        weight = torch.where(others, gap / (gap**2 + floor) - inverse, 0.0)
    # First-order change of an eigenvector of x'x: (lambda - x'x)^+ d(x'x) own; the value of the bracket is zero.
    moved = x.mT @ (x @ own)
    moved = moved - moved.detach()
    across = moved - own * (own * moved).sum(1, keepdim=True)
    own = own + across * inverse + v @ (weight * (v.mT @ moved))
    return own * (own.detach() * target).sum(1, keepdim=True).sign()
