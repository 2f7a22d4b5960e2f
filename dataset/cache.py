"""Arrays made of image files, kept beside them: decoded images, and what was measured of them."""

import contextlib
import hashlib
import os
import uuid
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .files import DECODER, Found


def cached(
    cache: Path,
    files: list[Found],
    make: Callable[[], np.ndarray],
    like: tuple[str, tuple[int, ...]],
    fits: Callable[[np.ndarray], bool] = lambda made: True,
) -> np.ndarray:
    """The array that `make` makes of `files`, kept in `cache`, an .npz file in the root of their tree.

    like: the array's dtype and shape. It is made anew where names, sizes or times of the files have changed, or where
    the cache holds another kind of array or one that does not fit: it may have come with the files. Not kept, with a
    warning, where the cache cannot be written.
    """
    key = _key(files, len(str(cache.parent / "_")) - 1)
    made = _load(cache, key, *like)
    if made is None or not fits(made):
        made = np.asarray(make(), like[0], order="C")
        _save(cache, key, made)
    return made


def _key(files: list[Found], start: int) -> str:
    """Paths count from character `start` on, below the root: a tree that was moved as a whole keeps its cache."""
    found = ((file.path[start:], file.stat()) for file in files)
    lines = (f"{path}|{stat.st_size}|{stat.st_mtime_ns}\n" for path, stat in found)
    text = f"decoder {DECODER}\n" + "".join(lines)
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _load(cache: Path, key: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The archive's array of the name `key`. Its header is compared before memory is taken for what it claims."""
    try:
        if not cache.is_file():  # a pipe would be waited for
            return None
        with zipfile.ZipFile(cache) as archive:
            with archive.open(f"{key}.npy") as file:
                version = np.lib.format.read_magic(file)
                header = np.lib.format.read_array_header_1_0(file)
            if (version, header) != ((1, 0), (shape, False, np.dtype(dtype))):
                return None
            with archive.open(f"{key}.npy") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
    except Exception:  # cut short, another file's or spoilt: zipfile and numpy raise errors of every kind
        return None


def _save(cache: Path, key: str, made: np.ndarray) -> None:
    partial_file = cache.with_name(f"{cache.name}.{uuid.uuid4().hex[:8]}")  # two runs may decode the same tree at once
    try:
        with open(partial_file, "wb") as file:
            np.savez(file, **{key: made})
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial_file, cache)
    except OSError as error:
        warnings.warn(f"{cache} cannot be written, images are decoded at every start: {error}", stacklevel=2)
        with contextlib.suppress(OSError):  # a read-only disk refuses this too, even where there is no such file
            partial_file.unlink()
