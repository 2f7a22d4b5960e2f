"""Handwritten digits: 1,797 real grey images of 8x8 pixels, 10 classes, shipped with the project.

The test part of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0 (`digits.LICENSE.txt`).

Trains on a CPU in a minute. `digits.npz` holds the 1,400 training images first (140 of each class, drawn once with
numpy's default_rng(0)), then the 397 validation images. Both have digits of the same 13 writers, so accuracy says
nothing about unseen writers. No flips, because a mirrored digit is another sign.
"""

from pathlib import Path

import numpy as np
import torch

from .base import ImageSet, register
from .pixels import measure, resize

_train = 1400


@register("digits")
def digits(folder: str | Path | None = None, image_size: int | None = None) -> ImageSet:
    """[1400, 3, S, S] and [397, 3, S, S] with S = `image_size` or 32. `folder` is not read."""
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        grey, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]).long()
    size = image_size or 32
    pixels = (grey.int() * 255 / 16).round().to(torch.uint8)
    images = resize(pixels[:, None].repeat(1, 3, 1, 1), size)
    return ImageSet(
        images[:_train],
        labels[:_train],
        images[_train:],
        labels[_train:],
        tuple(str(digit) for digit in range(10)),
        *measure([images[:_train]]),
        padding=size // 8,
        flip=False,
    )
