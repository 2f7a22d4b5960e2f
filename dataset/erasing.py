"""Erased rectangles. They are filled with the mean, which is 0 in normalised images."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .augment import upload


def erase(images: Tensor, box: Tensor) -> Tensor:
    """Sets each image of [B, ..., H, W] to 0 in its box, in place. box: [B, 4] on the CPU: top, left, height, width."""
    box = upload(box, images.device).view(len(box), 4, *[1] * (images.dim() - 1))
    top, left, height, width = box.unbind(1)
    y, x = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    y = y.unsqueeze(1)
    return images.masked_fill_((y >= top) & (y < top + height) & (x >= left) & (x < left + width), 0.0)


def between(low: float, high: float, share: Tensor) -> Tensor:
    return low + (high - low) * share


class Cutout:
    """Improved Regularization of Convolutional Neural Networks with Cutout. DeVries, Taylor 2017.
    https://arxiv.org/abs/1708.04552

    A square with half the shorter side, centred on any pixel; part of it may lie outside.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self.size, self.side = size, min(size) // 2

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, 4] int64: boxes for `erase`."""
        corner = [torch.randint(side, (n,), generator=generator) - self.side // 2 for side in self.size]
        return torch.stack([*corner, *[torch.full((n,), self.side)] * 2], 1)


class RandomErasing:
    """Random Erasing Data Augmentation. Zhong et al., AAAI 2020. https://arxiv.org/abs/1708.04896

    With probability `p`, a rectangle of 2 to 33 % of the area and 0.3 to 3.3 times as high as wide, drawn as
    torchvision does.
    """

    area, ratio, tries = (0.02, 0.33), (0.3, 3.3), 10

    def __init__(self, p: float, size: Sequence[int]) -> None:
        self.p, self.size = p, size

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, 4] int64: boxes for `erase`; height and width 0 without a rectangle."""
        (h, w), box = self.size, torch.zeros(n, 4, dtype=torch.int64)
        missing = (torch.rand(n, generator=generator) < self.p).nonzero().flatten()
        for _ in range(self.tries):
            area, ratio = torch.rand(2, len(missing), generator=generator, dtype=torch.float64)
            area = h * w * between(*self.area, area)
            ratio = between(*map(math.log, self.ratio), ratio).exp()
            height, width = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
            fits = (height < h) & (width < w)
            at, height, width = missing[fits], height[fits], width[fits]
            top, left = torch.rand(2, len(at), generator=generator, dtype=torch.float64)
            top, left = (top * (h - height + 1)).long(), (left * (w - width + 1)).long()
            box[at] = torch.stack([top, left, height, width], 1)
            missing = missing[~fits]
        return box
