"""CIFAR-10.1: a second test set for CIFAR-10, collected years later. Training images are CIFAR-10's.

B. Recht, R. Roelofs, L. Schmidt and V. Shankar, "Do CIFAR-10 Classifiers Generalize to CIFAR-10?", 2018,
https://arxiv.org/abs/1806.00451, https://github.com/modestyachts/CIFAR-10.1

`cifar10.1` validates on version 6 (2,000 images, class-balanced, the one to report), `cifar10.1-v4` on version 4 (2,021
images).
"""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .base import ImageSet, register
from .cifar import cifar10
from .pixels import resize


def cifar10_1(folder: str | Path, image_size: int | None = None, *, version: str) -> ImageSet:
    """Reads `cifar10.1_<version>_data.npy` and `_labels.npy` from `folder`, or from `folder`/CIFAR-10.1/datasets.

    The training images are those of `cifar10` from the same folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file has other contents.
    """
    names = [f"cifar10.1_{version}_{kind}.npy" for kind in ("data", "labels")]
    places = [Path(folder), Path(folder) / "CIFAR-10.1" / "datasets"]
    place = next((p for p in places if all((p / name).is_file() for name in names)), None)
    if place is None:
        raise FileNotFoundError(
            f"{folder}: expected {' and '.join(names)}, here or in CIFAR-10.1/datasets/; "
            "they are in https://github.com/modestyachts/CIFAR-10.1/tree/master/datasets"
        )
    try:
        images, labels = (np.load(place / name) for name in names)
    except Exception as error:  # a broken header raises errors of every kind
        raise ValueError(f"{place}: cannot read {' and '.join(names)}: {error}") from error
    if not (isinstance(images, np.ndarray) and isinstance(labels, np.ndarray)):
        raise ValueError(f"{place}: expected one array in each of {' and '.join(names)}, found an archive of several")
    is_label = labels.ndim == 1 and labels.size and np.issubdtype(labels.dtype, np.integer)
    if not is_label or images.dtype != np.uint8 or images.shape != (labels.size, 32, 32, 3):
        raise ValueError(
            f"{place}: expected {names[0]} of uint8 [N, 32, 32, 3] and as many labels, "
            f"found {images.dtype} {list(images.shape)} and {labels.dtype} {list(labels.shape)}"
        )
    data = cifar10(folder, image_size)
    if labels.min() < 0 or labels.max() >= len(data.classes):
        raise ValueError(f"{place / names[1]}: expected labels from 0 to {len(data.classes) - 1}, found others")
    return dataclasses.replace(
        data,
        val_images=resize(torch.from_numpy(images).permute(0, 3, 1, 2), image_size),
        val_labels=torch.from_numpy(labels).long(),
    )


register("cifar10.1")(partial(cifar10_1, version="v6"))
register("cifar10.1-v4")(partial(cifar10_1, version="v4"))
