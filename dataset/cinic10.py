"""CINIC-10: 90,000 training, 90,000 validation and 90,000 test images of 32x32 pixels, CIFAR-10's ten classes.

L. N. Darlow, E. J. Crowley, A. Antoniou and A. J. Storkey, "CINIC-10 is not ImageNet or CIFAR-10", 2018,
https://arxiv.org/abs/1810.03505, https://datashare.ed.ac.uk/handle/10283/3192

Three ways to split: `cinic10` trains on train and validates on test; `cinic10-enlarged` trains on train and valid, the
paper's enlarged training set; `cinic10-valid` trains on train and validates on valid, to choose options. Published runs
use RandomResizedCrop (random size and aspect ratio); here, as for all data sets of this size, a padded crop and a flip.
CIFAR-10's 60,000 images are among the 270,000, in all three parts: a network trained on CIFAR-10 has seen some of these
test images.

The images live in memory or in files as for `folder`, separately for each part.
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
    """`folder` holds or is `CINIC-10`. Trains on train/, validates on test/. Raises as `read`."""
    return read(folder, image_size, storage, ("train",), "test")


@register("cinic10-enlarged")
def cinic10_enlarged(folder: str | Path, image_size: int | None, storage: Storage) -> ImageSet:
    """As `cinic10`, but trains on train/ and valid/."""
    return read(folder, image_size, storage, ("train", "valid"), "test")


@register("cinic10-valid")
def cinic10_valid(folder: str | Path, image_size: int | None, storage: Storage) -> ImageSet:
    """As `cinic10`, but validates on valid/."""
    return read(folder, image_size, storage, ("train",), "valid")


def read(folder: str | Path, image_size: int | None, storage: Storage, train: tuple[str, ...], val: str) -> ImageSet:
    """Reads the named parts of the official layout, `<part>/<class>/*.png`.

    Raises:
        FileNotFoundError: a part, or the images of a class, are missing.
        ValueError: other classes, or an image that cannot be decoded.
    """
    folder, size = Path(folder), image_size or 32
    root = folder / "CINIC-10" if (folder / "CINIC-10").is_dir() else folder
    if not all((root / part).is_dir() for part in _parts):
        there = few(sorted(os.listdir(root))) if root.is_dir() else "no folder"
        raise FileNotFoundError(f"{root}: expected train/, valid/ and test/, here or in CINIC-10/; found {there}")
    # check all parts before decoding any image
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
