"""CINIC-10: 90,000 training, 90,000 validation and 90,000 test images of 32x32 pixels, CIFAR-10's ten classes.

L. N. Darlow, E. J. Crowley, A. Antoniou and A. J. Storkey, "CINIC-10 is not ImageNet or CIFAR-10", 2018,
https://arxiv.org/abs/1810.03505, https://datashare.ed.ac.uk/handle/10283/3192

The name says which parts train and which is validated on: `cinic10` is train and test, `cinic10-enlarged` the paper's
enlarged training set, train and valid together, and test, `cinic10-valid` train and valid, to choose options by.
Published runs crop at a random size and aspect ratio (RandomResizedCrop); here, as everywhere in this project, it is a
padded crop and a flip. All 60,000 images of CIFAR-10 are among the 270,000, in all three parts: a network that was
trained on CIFAR-10 has seen a part of this test set.

Kept in memory or in their files as for `folder`, each part by itself.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from .base import ImageSet, register
from .files import by_class, few, same_classes
from .storage import Files, Storage

_classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_parts = ("train", "valid", "test")


@register("cinic10")
def cinic10(folder: str | Path, image_size: int | None, storage: Storage) -> ImageSet:
    """`folder` holds or is `CINIC-10`; train/ trains, test/ validates. Raises what `read` raises."""
    return read(folder, image_size, storage, ("train",), "test")


@register("cinic10-enlarged")
def cinic10_enlarged(folder: str | Path, image_size: int | None, storage: Storage) -> ImageSet:
    """As `cinic10`, but train/ and valid/ train."""
    return read(folder, image_size, storage, ("train", "valid"), "test")


@register("cinic10-valid")
def cinic10_valid(folder: str | Path, image_size: int | None, storage: Storage) -> ImageSet:
    """As `cinic10`, but valid/ validates."""
    return read(folder, image_size, storage, ("train",), "valid")


def read(folder: str | Path, image_size: int | None, storage: Storage, train: tuple[str, ...], val: str) -> ImageSet:
    """The named parts of the official layout, `<part>/<class>/*.png`.

    FileNotFoundError: a part or a class's images are missing. ValueError: other classes, an image that cannot be
    decoded.
    """
    folder, size = Path(folder), image_size or 32
    root = folder / "CINIC-10" if (folder / "CINIC-10").is_dir() else folder
    if not all((root / part).is_dir() for part in _parts):
        there = few(sorted(os.listdir(root))) if root.is_dir() else "no folder"
        raise FileNotFoundError(f"{root}: expected train/, valid/ and test/, here or in CINIC-10/; found {there}")
    # all that is asked for is looked through before anything is decoded
    found = {part: by_class(root / part) for part in (*train, val)}
    for part, (classes, _, _) in found.items():
        same_classes(root / part, classes, _classes, "CINIC-10")

    train_labels, val_labels = [label for part in train for label in found[part][2]], found[val][2]
    storage = storage.settled(size, len(train_labels), len(val_labels))

    def images(*parts: str) -> Tensor | Files:
        return storage.images(size, *((root / f".cache-cinic10-{part}-{size}.npz", found[part][1]) for part in parts))

    return ImageSet(
        images(*train),
        torch.tensor(train_labels),
        images(val),
        torch.tensor(val_labels),
        _classes,
        mean=(0.4789, 0.4723, 0.4305),
        std=(0.2421, 0.2383, 0.2587),
        padding=size // 8,
        val_paths=[file.path for file in found[val][1]],
    )
