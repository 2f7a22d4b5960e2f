"""Data sets. A new one: its file, and an import line here."""

import dataclasses
import inspect
from pathlib import Path

from . import cifar as cifar
from . import cifar10_1 as cifar10_1
from . import cinic10 as cinic10
from . import digits as digits
from . import folder as folder
from . import h5 as h5
from . import imagenet as imagenet
from . import stl10 as stl10
from . import tinyimagenet as tinyimagenet
from .augment import Augment, InMemory, Views
from .base import Batch, ImageSet, dataset_names, find_dataset, register
from .batches import Batches, ValBatches, limit, places, split
from .digest import fingerprint, listed
from .files import Unreadable
from .mixing import Mixing
from .policies import POLICIES
from .storage import Storage
from .stream import augmentation

__all__ = [
    "Augment",
    "Batch",
    "Batches",
    "ImageSet",
    "InMemory",
    "Mixing",
    "POLICIES",
    "Storage",
    "Unreadable",
    "ValBatches",
    "Views",
    "augmentation",
    "dataset_names",
    "find_dataset",
    "fingerprint",
    "limit",
    "listed",
    "load",
    "register",
    "split",
]


def load(
    name: str,
    folder: str | Path,
    image_size: int | None = None,
    limit_train: int | None = None,
    limit_val: int | None = None,
    storage: Storage | None = None,
) -> ImageSet:
    """Loads data set `name` from `folder`.

    Args:
        name: one of `dataset_names()`.
        folder: where the data set is, or is downloaded to.
        image_size: pixels a side; None: the data set's own size.
        limit_train, limit_val: sizes of class-balanced subsets; None: all samples.
        storage: where images from files live; None: `Storage()`.

    Returns:
        An ImageSet.

    Raises:
        ValueError: unknown name, bad size or limit, broken data; one line.
        FileNotFoundError: missing data; one line.

    Example:
        data = load("cifar100", "./data")
        batches = Batches(augmentation(data, "cpu"), data.train_labels, 64, seed=1)
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"--image_size: expected at least 1 pixel, found {image_size}")
    storage, loader = storage or Storage(), find_dataset(name)
    if "storage" in inspect.signature(loader).parameters:
        data = loader(folder, image_size, storage=storage)
    elif storage.loader in ("auto", "memory"):
        data = loader(folder, image_size)
    else:
        raise ValueError(f"--loader {storage.loader}: {name} has no image files; it is always in memory")
    for part, n in (("train", limit_train), ("val", limit_val)):
        if n is not None:
            try:
                chosen = places(getattr(data, f"{part}_labels"), n)
            except ValueError as error:
                raise ValueError(f"--limit_{part}: {error}") from error
            kept = {f"{part}_{each}": getattr(data, f"{part}_{each}")[chosen] for each in ("images", "labels")}
            if part == "val" and data.val_paths:
                kept["val_paths"] = [data.val_paths[place] for place in chosen.tolist()]
            data = dataclasses.replace(data, **kept)
    inside = str(Path(folder) / "_")[:-1]
    return dataclasses.replace(data, val_paths=[path.removeprefix(inside) for path in data.val_paths])
