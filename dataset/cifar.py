"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels, 10 or 100 classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009,
https://www.cs.toronto.edu/~kriz/cifar.html

torchvision reads the official python batches and checks their MD5 sums.
"""

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from .base import ImageSet, register
from .official import read
from .pixels import Channels, resize


@register("cifar10")
def cifar10(folder: str | Path, image_size: int | None = None) -> ImageSet:
    """`folder` holds or is `cifar-10-batches-py`; otherwise it is downloaded there.

    Raises FileNotFoundError if that fails.
    """
    return _read(CIFAR10, Path(folder), image_size, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@register("cifar100")
def cifar100(folder: str | Path, image_size: int | None = None) -> ImageSet:
    """`folder` holds or is `cifar-100-python`; otherwise it is downloaded there.

    Raises FileNotFoundError if that fails.
    """
    return _read(CIFAR100, Path(folder), image_size, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def _read(source: type[CIFAR10], folder: Path, image_size: int | None, mean: Channels, std: Channels) -> ImageSet:
    train, val = read(source, folder, "python batches", {"train": True}, {"train": False})
    train_images, val_images = (torch.from_numpy(part.data).permute(0, 3, 1, 2) for part in (train, val))
    return ImageSet(
        resize(train_images, image_size),
        torch.tensor(train.targets),
        resize(val_images, image_size),
        torch.tensor(val.targets),
        tuple(train.classes),
        mean,
        std,
        padding=(image_size or 32) // 8,
    )
