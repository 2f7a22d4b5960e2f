"""Any data set of image files: `train/<class>/*` and `val/<class>/*`.

The validation folder is `val`, else `test`, else `valid`. Images may be at any depth below their class folder, as in
`train/<class>/images/*`. Small images are decoded once and cached in `.cache-<size>-<part>.npz` beside train/, if that
can be written. They are decoded again if file names, sizes or times changed.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from .base import ImageSet, register
from .cache import cached
from .files import Found, by_class, few, opened, same_classes
from .listing import Listing
from .pixels import measure
from .storage import LARGEST_KEPT, Storage

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_default_size = 32


@register("folder")
def folder(folder: str | Path, image_size: int | None, storage: Storage) -> ImageSet:
    """Images below `folder`, of `image_size` pixels; by default of `_common_size`, else 32.

    Mean and deviation are measured up to 64 pixels; above, they are ImageNet's. Raises as `listing`, and ValueError for
    an image that cannot be decoded.
    """
    found = listing(Path(folder))
    every = found.train_files + found.val_files
    size = image_size or int(
        cached(found.root / ".cache-size.npz", every, lambda: _common_size(every), ("int64", ()), _is_size)
    )
    data = found.at(size, storage, **IMAGENET)
    if size > LARGEST_KEPT:
        return data
    cache = found.root / f".cache-{size}-mean-std.npz"

    def measured() -> np.ndarray:
        return np.array(measure(data.train_images.split(1024)))

    mean, std = cached(cache, found.train_files, measured, ("float64", (2, 3)), _are_channels).tolist()
    return dataclasses.replace(data, mean=tuple(mean), std=tuple(std))


def listing(root: Path) -> Listing:
    """Lists the image files of both splits.

    Raises:
        FileNotFoundError: no such folder, no train or validation folder, or a class without images.
        ValueError: fewer than two classes, or classes that differ between the splits.
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


def _is_size(x: np.ndarray) -> bool:
    return 1 <= x <= LARGEST_KEPT


def _are_channels(x: np.ndarray) -> bool:
    return bool(((0 <= x) & (x <= 1)).all() and x[1].all())


def _common_size(files: list[Found]) -> np.ndarray:
    """The images' size, if all are square, of equal size and at most 64 pixels a side; else 32."""
    size = None
    for file in files:
        with opened(file.path) as image:
            width, height = image.size
        if width != height or width > LARGEST_KEPT or size not in (None, width):
            return np.array(_default_size)
        size = width
    return np.array(size)
