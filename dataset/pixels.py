"""Resizing and statistics of images in memory."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_GB = 32
Channels = tuple[float, float, float]


def resize(images: Tensor, size: int | None) -> Tensor:
    """Resizes square images [N, 3, H, H] uint8 to `size` x `size` pixels: bilinear, antialiased when shrinking."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    if (gb := images[..., 0, 0].numel() * size**2 / 1e9) > LARGEST_GB:
        raise ValueError(f"--image_size {size}: {len(images)} images of that size take {gb:.0f} GB of memory")
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


def measure(parts: Iterable[Tensor]) -> tuple[Channels, Channels]:
    """Mean and deviation of each channel over all parts [N, 3, H, W] uint8, in 0..1.

    A constant channel has deviation 1.
    """
    # counting the 256 values is exact, and needs no float copy of the images
    counts = sum(torch.stack([x.flatten().bincount(minlength=256) for x in part.unbind(1)]) for part in parts)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for count in counts.double():
        mean.append((count @ values / count.sum()).item())
        constant = count.count_nonzero() == 1  # the formula might give rounding noise instead of 0
        std.append(1.0 if constant else (count @ (values - mean[-1]).square() / count.sum()).sqrt().item())
    return tuple(mean), tuple(std)
