"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels, 10 or 100 classes.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, https://www.cs.toronto.edu/~kriz/cifar.html

Read from the official python batches by torchvision, which checks their MD5 sums.
"""

import http.client
import tarfile
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, CIFAR100

from .base import ImageSet, register
from .pixels import Channels, resize


@register("cifar10")
def cifar10(folder: str | Path, image_size: int | None = None) -> ImageSet:
    """`folder` holds or is `cifar-10-batches-py`, else it is downloaded there; FileNotFoundError where that fails."""
    return _read(CIFAR10, Path(folder), image_size, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@register("cifar100")
def cifar100(folder: str | Path, image_size: int | None = None) -> ImageSet:
    """`folder` holds or is `cifar-100-python`, else it is downloaded there; FileNotFoundError where that fails."""
    return _read(CIFAR100, Path(folder), image_size, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def _read(source: type[CIFAR10], folder: Path, image_size: int | None, mean: Channels, std: Channels) -> ImageSet:
    files = [name for name, _ in source.train_list + source.test_list]
    inside = all((folder / name).is_file() for name in files)
    if inside:
        source = type(source.__name__, (source,), {"base_folder": ""})
    existed = folder.exists()
    try:
        train = source(folder, train=True, download=not inside)  # downloads where files are missing or broken
        val = source(folder, train=False)
    except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        tried = "their MD5 sums" if inside else f"to download {source.url}"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(
            f"{folder / source.base_folder}: expected the python batches {', '.join(files)}; tried {tried}: {reason}"
        ) from error
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
