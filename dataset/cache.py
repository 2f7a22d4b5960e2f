"""Caches arrays made from image files beside them: decoded images, and statistics."""

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
    """The array that `make` computes from `files`, cached in `cache`.

    It is computed again if names, sizes or times of the files changed. So it is if the cache's array has another dtype
    or shape, or `fits` rejects it, because the cache may have come with the files. If the cache cannot be written,
    warns and goes on.

    Args:
        cache: an .npz file in the root of the data set.
        files: what the array is made of.
        make: computes it.
        like: its dtype and shape.
        fits: whether a cached array is valid.
    """
    key = _key(files, len(str(cache.parent / "_")) - 1)
    made = _load(cache, key, *like)
    if made is None or not fits(made):
        made = np.asarray(make(), like[0], order="C")
        _save(cache, key, made)
    return made


def _key(files: list[Found], start: int) -> str:
    """Digest of the files. Paths are relative (from character `start` on), so a moved data set keeps its cache."""
    found = ((file.path[start:], file.stat()) for file in files)
    lines = (f"{path}|{stat.st_size}|{stat.st_mtime_ns}\n" for path, stat in found)
    text = f"decoder {DECODER}\n" + "".join(lines)
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _load(cache: Path, key: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The archive's array named `key`, or None. Compares its header before allocating what it claims."""
    try:
        if not cache.is_file():  # opening a pipe would block
            return None
        with zipfile.ZipFile(cache) as archive:
            with archive.open(f"{key}.npy") as file:
                version = np.lib.format.read_magic(file)
                header = np.lib.format.read_array_header_1_0(file)
            if (version, header) != ((1, 0), (shape, False, np.dtype(dtype))):
                return None
            with archive.open(f"{key}.npy") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
    except Exception:  # truncated, damaged or not an archive: zipfile and numpy raise errors of every kind
        return None


def _save(cache: Path, key: str, made: np.ndarray) -> None:
    partial_file = cache.with_name(f"{cache.name}.{uuid.uuid4().hex[:8]}")  # two runs may decode the same files at once
    try:
        with open(partial_file, "wb") as file:
            np.savez(file, **{key: made})
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial_file, cache)
    except OSError as error:
        warnings.warn(f"{cache} cannot be written, images are decoded at every start: {error}", stacklevel=2)
        with contextlib.suppress(OSError):  # a read-only disk raises here too, even if there is no such file
            partial_file.unlink()
