"""Any data set of small images kept as files: `train/<class>/*` and `val/<class>/*`.

The validation folder is `val`, else `test`, else `valid`. Images are found at any depth below their class folder, so
that `train/<class>/images/*` will do too. They are decoded once and kept in `.cache-<size>.pt` beside train/, where
that can be written; a tree whose file names, sizes or times have changed is decoded again.
"""

import os
from pathlib import Path
from typing import Any

import torch

from .base import ImageSet, register
from .files import by_class, cached, decode, few, opened, same_classes
from .pixels import measure

_largest_kept = 64  # square images of up to this many pixels a side keep their size
_default_size = 32


@register("folder")
def folder(folder: str | Path, image_size: int | None = None, workers: int = 8) -> ImageSet:
    """The tree below `folder`, in images of `image_size` pixels: shortest side resized, then the centre cropped.

    Without a size: that of the images where all are square, alike and of at most 64 pixels a side, else 32.
    FileNotFoundError: no such folder, no train or validation folder, a class without images. ValueError: fewer than two
    classes, classes that differ between the two parts, an image that cannot be decoded.
    """
    root = Path(folder)
    train, val = _parts(root)
    classes, train_files, train_labels = by_class(train)
    val_classes, val_files, val_labels = by_class(val)
    same_classes(val, val_classes, classes, "train/")

    def make(paths: list[str]) -> dict[str, Any]:
        images = decode(paths, image_size or _common_size(paths), workers)
        train_images, val_images = images[: len(train_files)], images[len(train_files) :]
        mean, std = measure(train_images)
        # A part of a tensor is saved with the whole one's storage: both parts together are that storage, once.
        return {"train": train_images, "val": val_images, "mean": mean, "std": std}

    found = cached(root / f".cache-{image_size or 'auto'}.pt", train_files + val_files, make)
    return ImageSet(
        found["train"],
        torch.tensor(train_labels),
        found["val"],
        torch.tensor(val_labels),
        classes,
        tuple(found["mean"]),
        tuple(found["std"]),
        padding=found["train"].shape[-1] // 8,
    )


def _parts(root: Path) -> tuple[Path, Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected a folder that holds train/ and val/ (or test/, valid/); found none")
    vals = [root / name for name in ("val", "test", "valid") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not vals:
        found = few(sorted(os.listdir(root)))
        raise FileNotFoundError(f"{root}: expected train/ and one of val/, test/, valid/; found {found}")
    return root / "train", vals[0]


def _common_size(paths: list[str]) -> int:
    size = None
    for path in paths:
        with opened(path) as image:
            width, height = image.size
        if width != height or width > _largest_kept or size not in (None, width):
            return _default_size
        size = width
    return size
