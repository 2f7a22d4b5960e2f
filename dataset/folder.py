"""Any data set of small images kept as files: `train/<class>/*` and `val/<class>/*`.

The validation folder is `val`, else `test`, else `valid`. Images are found at any depth below their class folder, so
that `train/<class>/images/*` will do too. They are decoded once and kept in `.cache-<size>.pt` beside train/, where
that can be written; a tree whose file names, sizes or times have changed is decoded again.
"""

import hashlib
import os
import uuid
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from .base import ImageSet, register
from .pixels import measure

_suffixes = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_largest_kept = 64  # square images of up to this many pixels a side keep their size
_default_size = 32
_decoder = 1  # to be raised with any change that gives other pixels: it makes older caches void


@register("folder")
def folder(folder: str | Path, image_size: int | None = None) -> ImageSet:
    """The tree below `folder`, in images of `image_size` pixels: shortest side resized, then the centre cropped.

    Without a size: that of the images where all are square, alike and of at most 64 pixels a side, else 32.
    FileNotFoundError: no such folder, no train or validation folder, a class without images. ValueError: fewer than two
    classes, classes that differ between the two parts, an image that cannot be decoded.
    """
    root = Path(folder)
    train, val = _parts(root)
    classes, train_files, train_labels = _list(train)
    val_classes, val_files, val_labels = _list(val)
    if classes != val_classes:
        lost, new = sorted(set(classes) - set(val_classes)), sorted(set(val_classes) - set(classes))
        raise ValueError(
            f"{val}: expected the {len(classes)} classes of train/; missing {_few(lost)}, extra {_few(new)}"
        )

    files = train_files + val_files
    cache = root / f".cache-{image_size or 'auto'}.pt"
    key = _key(files, len(str(train)) - len(train.name))
    found = _load(cache, key)
    if found is None:
        paths = [path for path, _ in files]
        images = _decode(paths, image_size or _common_size(paths))
        train_images, val_images = images[: len(train_files)], images[len(train_files) :]
        mean, std = measure(train_images)
        # A part of a tensor is saved with the whole one's storage: both parts together are that storage, once.
        found = {"key": key, "train": train_images, "val": val_images, "mean": mean, "std": std}
        _save(cache, found)
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
        found = _few(sorted(os.listdir(root)))
        raise FileNotFoundError(f"{root}: expected train/ and one of val/, test/, valid/; found {found}")
    return root / "train", vals[0]


def _list(part: Path) -> tuple[tuple[str, ...], list[tuple[str, os.stat_result]], list[int]]:
    """Class names, (path, stat) of every image in order of class and name, and its label."""
    classes = sorted(entry.name for entry in os.scandir(part) if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        raise ValueError(f"{part}: expected a folder for each of at least 2 classes; found {_few(classes)}")
    files, labels = [], []
    for label, name in enumerate(classes):
        images = sorted(_images(part / name), key=lambda image: image[0])
        if not images:
            kept = sum(len(names) for _, _, names in os.walk(part / name))
            raise FileNotFoundError(
                f"{part / name}: expected at least one image ({', '.join(_suffixes)}); found {kept} other files"
            )
        files += images
        labels += [label] * len(images)
    return tuple(classes), files, labels


def _images(place: str | Path) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith("."):  # among them macOS's "._name.jpg", which are no images
                continue
            if entry.is_dir():
                yield from _images(entry.path)
            elif entry.name.lower().endswith(_suffixes):
                yield entry.path, entry.stat()


def _few(names: list[str] | tuple[str, ...]) -> str:
    return (", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"


def _key(files: list[tuple[str, os.stat_result]], start: int) -> str:
    """Paths count from character `start` on, below the root: a tree that was moved as a whole keeps its cache."""
    lines = (f"{path[start:]}|{stat.st_size}|{stat.st_mtime_ns}\n" for path, stat in files)
    text = f"decoder {_decoder}\n" + "".join(lines)
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _common_size(paths: list[str]) -> int:
    size = None
    for path in paths:
        with _opened(path) as image:
            width, height = image.size
        if width != height or width > _largest_kept or size not in (None, width):
            return _default_size
        size = width
    return size


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    # PIL raises OSError, SyntaxError, struct.error and more, by format and by what is broken.
    except Exception as error:
        raise ValueError(f"{path}: cannot be decoded as an image: {error}") from error


def _decode(paths: list[str], size: int) -> Tensor:
    """[N, 3, size, size] uint8 (in channels_last order)."""
    pixels = torch.empty(len(paths), size, size, 3, dtype=torch.uint8)
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(partial(_decode_one, size=size), paths, pixels.numpy()):
            pass
    return pixels.permute(0, 3, 1, 2)


def _decode_one(path: str, out: np.ndarray, size: int) -> None:
    with _opened(path) as file:
        image = file.convert("RGB")
    if image.size != (size, size):
        image = transforms.center_crop(transforms.resize(image, [size]), [size, size])
    out[:] = np.asarray(image)


def _load(cache: Path, key: str) -> dict | None:
    try:
        found = torch.load(cache, weights_only=True)
        return found if found["key"] == key else None
    except Exception:  # missing, unreadable, cut short or something else: it is made anew
        return None


def _save(cache: Path, content: dict) -> None:
    partial_file = cache.with_name(f"{cache.name}.{uuid.uuid4().hex[:8]}")  # two runs may decode the same tree at once
    try:
        with open(partial_file, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial_file, cache)
    except (OSError, RuntimeError) as error:  # torch.save says RuntimeError where a disk is full
        warnings.warn(f"{cache} cannot be written, images are decoded at every start: {error}", stacklevel=2)
        partial_file.unlink(missing_ok=True)
