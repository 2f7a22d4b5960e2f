"""Any data set kept as image files: `train/<class>/*` and `val/<class>/*`.

The validation folder is `val`, else `test`, else `valid`. Images are found at any depth below their class folder, so
that `train/<class>/images/*` will do too. Small ones are decoded once and kept in `.cache-<size>-<part>.pt` beside
train/, where that can be written; a tree whose file names, sizes or times have changed is decoded again.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from .base import ImageSet, register
from .files import Found, by_class, cached, few, opened, same_classes
from .pixels import measure
from .storage import LARGEST_KEPT, Listing, Storage

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_default_size = 32


@register("folder")
def folder(folder: str | Path, image_size: int | None, storage: Storage) -> ImageSet:
    """The tree below `folder`, in images of `image_size` pixels, or as `_common_size` finds them, or of 32.

    Mean and deviation are measured, above 64 pixels they are ImageNet's. Raises what `listing` raises, and ValueError
    for an image that cannot be decoded.
    """
    found = listing(Path(folder))
    every = found.train_files + found.val_files
    sizes = range(1, LARGEST_KEPT + 1)
    size = image_size or cached(found.root / ".cache-size.pt", every, lambda: _common_size(every), sizes.__contains__)
    data = found.at(size, storage, **IMAGENET)
    if size > LARGEST_KEPT:
        return data
    measured = found.root / f".cache-{size}-mean-std.pt"
    mean, std = cached(measured, found.train_files, lambda: measure(data.train_images.split(1024)), _are_channels)
    return dataclasses.replace(data, mean=tuple(mean), std=tuple(std))


def listing(root: Path) -> Listing:
    """FileNotFoundError: no such folder, no train or validation folder, a class without images.

    ValueError: fewer than two classes, classes that differ between the two parts.
    """
    train, val = _parts(root)
    classes, *train_part = by_class(train)
    val_classes, *val_part = by_class(val)
    same_classes(val, val_classes, classes, "train/")
    return Listing(root, classes, *train_part, *val_part)


def _parts(root: Path) -> tuple[Path, Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder that holds train/ and val/ (or test/, valid/); found none")
    vals = [root / name for name in ("val", "test", "valid") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not vals:
        found = few(sorted(os.listdir(root)))
        raise FileNotFoundError(f"{root}: expected train/ and one of val/, test/, valid/; found {found}")
    return root / "train", vals[0]


def _are_channels(x: Any) -> bool:
    return (
        [len(part) for part in x] == [3, 3] and all(0 <= value <= 1 for part in x for value in part) and 0 not in x[1]
    )


def _common_size(files: list[Found]) -> int:
    """That of the images where all are square, alike and of at most 64 pixels a side."""
    size = None
    for file in files:
        with opened(file.path) as image:
            width, height = image.size
        if width != height or width > LARGEST_KEPT or size not in (None, width):
            return _default_size
        size = width
    return size
