"""mixup and CutMix: mixes each image of a batch with the previous one, and the first with the last.

mixup: Beyond Empirical Risk Minimization. Zhang et al., ICLR 2018. https://arxiv.org/abs/1710.09412 CutMix:
Regularization Strategy to Train Strong Classifiers with Localizable Features. Yun et al., ICCV 2019.
https://arxiv.org/abs/1905.04899
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Mix(NamedTuple):
    """How all images of a batch are mixed."""

    share: float  # weight of each image's own pixels
    box: tuple[slice, slice] | None = None  # rows and columns from the other image; None: a weighted sum

    def __call__(self, images: Tensor) -> Tensor:
        """Mixes each image with the previous one: [1 + B, ..., C, H, W] -> [B, ..., C, H, W]."""
        other, own = images[:-1], images[1:]
        if self.box is None:
            return other.mul(1 - self.share).add_(own.mul(self.share))  # no fused multiply-add: equal on all devices
        mixed = own.clone()
        mixed[..., *self.box] = other[..., *self.box]
        return mixed


class Mixing:
    """Draws a Mix for each batch. With both mixup and CutMix, each gets half of the batches.

    Args:
        mixup, cutmix: alpha of Beta(alpha, alpha), from which the share is drawn; 0: off.
        size: height and width of the images.
    """

    def __init__(self, mixup: float, cutmix: float, size: Sequence[int]) -> None:
        self.mixup, self.cutmix, self.size = mixup, cutmix, size

    def draw(self, steps: int, generator: torch.Generator) -> list[Mix]:
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, (), generator=generator)))
        cut = rng.random(steps) < (0.5 if self.mixup and self.cutmix else bool(self.cutmix))
        alpha = np.where(cut, self.cutmix, self.mixup)
        share = rng.beta(alpha, alpha)
        centres = np.stack([rng.integers(side, size=steps) for side in self.size], 1)
        each = zip(cut.tolist(), share.tolist(), centres.tolist(), strict=True)
        return [self.cut(share, centre) if cut else Mix(share) for cut, share, centre in each]

    def cut(self, share: float, centre: Sequence[int]) -> Mix:
        """A box around `centre` with area 1 - share, and the share that is left if part of the box lies outside."""
        half = [int(0.5 * math.sqrt(1 - share) * side) for side in self.size]
        each = list(zip(centre, half, self.size, strict=True))
        rows, columns = (slice(max(place - r, 0), min(place + r, side)) for place, r, side in each)
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return Mix(1 - area / math.prod(self.size), (rows, columns))
