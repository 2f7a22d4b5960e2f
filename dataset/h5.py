"""Images and labels in HDF5: `train.h5`, and `val.h5` or `test.h5`. Needs h5py, which is optional.

Each file holds `images` [N, H, H, 3] uint8 and `labels` [N], integers from 0. train.h5 may also hold the class names,
`classes` [K].
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import ImageSet, register
from .pixels import LARGEST_GB, measure, resize

PACKED = 1100  # largest compression ratio: HDF5's own filters reach less


@register("h5")
def h5(folder: str | Path, image_size: int | None = None) -> ImageSet:
    """Images of `image_size` pixels, or of their own size. Mean and deviation are measured.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: h5py is not installed, or a file's contents are not as expected; names the file.
    """
    root = Path(folder)
    vals = [root / name for name in ("val.h5", "test.h5") if (root / name).is_file()]
    if not (root / "train.h5").is_file() or not vals:
        raise FileNotFoundError(f"{root}: expected train.h5 and one of val.h5, test.h5")
    train_images, train_labels, names = _read(root / "train.h5")
    val_images, val_labels, _ = _read(vals[0])
    if names is None:
        names = [str(label) for label in np.unique(train_labels)]
    if len(names) < 2 or not np.array_equal(np.unique(train_labels), np.arange(len(names))):
        found = len(np.unique(train_labels))
        raise ValueError(
            f"{root / 'train.h5'}: labels: expected each of 0 .. {max(len(names), 2) - 1}, found {found} classes, "
            f"{train_labels.min()} .. {train_labels.max()}"
        )
    if not 0 <= val_labels.min() <= val_labels.max() < len(names):
        found = f"{val_labels.min()} .. {val_labels.max()}"
        raise ValueError(f"{vals[0]}: labels: expected 0 .. {len(names) - 1} as in train.h5, found {found}")
    if image_size is None and train_images.shape[1:] != val_images.shape[1:]:
        sides = f"{train_images.shape[-1]} and {val_images.shape[-1]}"
        raise ValueError(f"{vals[0]}: images: expected the size of train.h5's, or --image_size; found {sides} pixels")
    train_images, val_images = resize(train_images, image_size), resize(val_images, image_size)
    return ImageSet(
        train_images,
        torch.from_numpy(train_labels),
        val_images,
        torch.from_numpy(val_labels),
        tuple(names),
        *measure(train_images.split(1024)),
        padding=train_images.shape[-1] // 8,
    )


def _read(path: Path) -> tuple[Tensor, np.ndarray, list[str] | None]:
    """Images [N, 3, H, H] uint8, labels [N] int64, and the class names if the file has them."""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path}: needs the package h5py (pip install h5py)") from None
    try:
        with h5py.File(path, "r") as file:
            images = _content(file, "images", ("uint8",), 4)
            labels = _content(file, "labels", ("int", "uint"), 1)
            names = _content(file, "classes", ("object", "bytes"), 1) if "classes" in file else None
    except (OSError, RuntimeError, KeyError, UnicodeError) as error:  # h5py's, depending on what is broken
        raise ValueError(f"{path}: not HDF5, or broken: {str(error).splitlines()[0]}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if images.shape[3] != 3 or images.shape[1] != images.shape[2] or 0 in images.shape:
        raise ValueError(f"{path}: images: expected [N, H, H, 3], found {list(images.shape)}")
    if len(labels) != len(images):
        raise ValueError(f"{path}: expected a label for each of {len(images)} images, found {len(labels)}")
    return (
        torch.from_numpy(images).permute(0, 3, 1, 2),
        labels.astype(np.int64),
        None if names is None else names.tolist(),
    )


def _content(file: Any, name: str, kinds: Sequence[str], dims: int) -> np.ndarray:
    """The array of a data set.

    Raises ValueError for another type or number of dimensions, and for values in other files.
    """
    import h5py

    link, found = file.get(name, getlink=True), file.get(name)
    if not isinstance(link, h5py.HardLink) or not isinstance(found, h5py.Dataset):
        raise ValueError(f"expected a data set {name!r}; the file has {', '.join(list(file)[:5]) or 'none'}")
    if found.is_virtual or found.external:
        raise ValueError(f"{name}: its values are in other files, which are not read")
    if found.dtype.name.rstrip("0123456789") not in [kind.rstrip("0123456789") for kind in kinds] or found.ndim != dims:
        kind = " or ".join(kinds)
        raise ValueError(f"{name}: expected {dims} dimensions of {kind}, found {found.ndim} of {found.dtype}")
    if found.nbytes > min(PACKED * found.id.get_storage_size(), LARGEST_GB * 1e9):
        stored = found.id.get_storage_size()
        raise ValueError(f"{name}: claims {found.nbytes / 1e9:.1f} GB, but the file holds {stored} bytes of it")
    return found.asstr()[:] if h5py.check_string_dtype(found.dtype) else found[:]
