"""A digest of a data set, so that a resumed run notices if its data changed."""

import hashlib
import inspect
import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from .base import ImageSet, find_dataset
from .storage import LARGEST_KEPT, Files, Storage


def fingerprint(data: ImageSet) -> dict[str, str]:
    """Digests of the parts of `data`: classes, labels and images of both splits.

    Images in memory have "train images" and "val images", digests of their bytes. Images in files have "train files"
    and "val files" instead, digests of relative paths and sizes, because reading all files takes too long. Compare only
    digests that both sides have. None depends on the folder, on times or on strides. Raises OSError if a file is gone.
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
    """A digest of a data set's image files: classes, relative paths and sizes. Opens none of them.

    Returns:
        "" for data sets without image files: these are shipped with the project, or are official files.

    Raises:
        OSError: the files are gone.
        ValueError: the files are not as expected.
    """
    loader = find_dataset(name)
    if "storage" not in inspect.signature(loader).parameters:
        return ""
    data = loader(folder, LARGEST_KEPT + 1, storage=Storage("stream"))  # a size for which no statistics are computed
    return _digest(part.encode() for part in fingerprint(data).values())


def _content(images: Tensor) -> Iterable[object]:
    yield str(list(images.shape)).encode()
    for some in images.split(4096):  # in NHWC, their order in memory, so that nothing is copied
        yield some.permute(0, 2, 3, 1).reshape(-1).numpy()


def _names_and_sizes(images: Files) -> Iterable[object]:
    yield from (path[images.start :] + b"\0" for path in images.paths.tolist())
    yield images.sizes_and_times()[:, 0].tobytes()


def _digest(content: Iterable[object]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for each in content:
        found.update(each)
    return found.hexdigest()
