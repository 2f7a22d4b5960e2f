"""A digest of a data set, by which a run that goes on notices that it would see other data."""

import hashlib
import inspect
import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from .base import ImageSet, find_dataset
from .storage import LARGEST_KEPT, Files, Storage


def fingerprint(data: ImageSet) -> dict[str, str]:
    """A digest of each part of `data`: classes, train labels, val labels, and the images of both.

    "train images" and "val images" are of the bytes of images in memory. Images that stay in their files have "train
    files" and "val files" instead, of paths below the data set's root and of sizes, since reading them all would take
    too long. So digests are compared where both sides have them. None depends on where the data set lies, on times or
    on strides. Raises OSError where a file is gone.
    """
    found = {"classes": _digest(os.fsencode(name) + b"\0" for name in data.classes)}
    for part in ("train", "val"):
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        found[f"{part} labels"] = _digest([labels.numpy()])
        if isinstance(images, Tensor):
            found[f"{part} images"] = _digest(_content(images))
        else:
            found[f"{part} files"] = _digest(_names_and_sizes(images))
    return found


def listed(name: str, folder: str | Path) -> str:
    """A digest of the image files of data set `name`: their classes, paths below the root and sizes; none is opened.

    "" for sets that have no image files: they are shipped with the program, or are official files. Raises OSError where
    the files are gone, ValueError where they are not as they should be.
    """
    loader = find_dataset(name)
    if "storage" not in inspect.signature(loader).parameters:
        return ""
    data = loader(folder, LARGEST_KEPT + 1, storage=Storage("stream"))  # of such a size nothing is measured
    return _digest(part.encode() for part in fingerprint(data).values())


def _content(images: Tensor) -> Iterable[object]:
    yield str(list(images.shape)).encode()
    for some in images.split(4096):  # in this order, which images in memory have already, they need no copy
        yield some.permute(0, 2, 3, 1).reshape(-1).numpy()


def _names_and_sizes(images: Files) -> Iterable[object]:
    yield from (path[images.start :] + b"\0" for path in images.paths.tolist())
    yield images.sizes_and_times()[:, 0].tobytes()


def _digest(content: Iterable[object]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for each in content:
        found.update(each)
    return found.hexdigest()
