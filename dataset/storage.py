"""Where images live during training: decoded in memory, or in files."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .cache import cached
from .files import Found, decode, no_bar

LARGEST_KEPT = 64  # pixels a side that are held in memory; larger images have random resized crops, from their files


class Storage(NamedTuple):
    """`--loader`, `--memory_gb`, `--num_workers`, and what shows how far images are decoded."""

    loader: str = "auto"
    memory_gb: float = 4.0
    workers: int = 8
    bar: Callable[[Iterable, int], Iterable] = no_bar

    def settled(self, size: int, n_train: int, n_val: int) -> "Storage":
        """Replaces the loader `auto` by the one to use.

        Raises ValueError, with the sizes, if the chosen loader cannot be used.
        """
        gigabytes = 3 * (n_train * (size + 2 * (size // 8)) ** 2 + n_val * size**2) / 1e9
        if self.loader == "auto":
            fits = size <= LARGEST_KEPT and gigabytes <= self.memory_gb
            return self._replace(loader="memory" if fits else "stream")
        if self.loader == "memory" and size > LARGEST_KEPT:
            raise ValueError(f"--loader memory: holds images of at most {LARGEST_KEPT} pixels, these have {size}")
        if self.loader == "memory" and gigabytes > self.memory_gb:
            raise ValueError(f"--loader memory: the images take {gigabytes:.3g} GB, --memory_gb is {self.memory_gb:g}")
        if self.loader == "dali":
            if size <= LARGEST_KEPT:
                raise ValueError(f"--loader dali: reads images of more than {LARGEST_KEPT} pixels, these have {size}")
            try:
                import nvidia.dali  # noqa: F401
            except ImportError as error:
                raise ValueError(f"--loader dali: NVIDIA DALI 2 is not installed here ({error})") from error
        return self

    def images(self, size: int, *parts: tuple[Path, list[Found]]) -> "Tensor | Files":
        """The images [N, 3, size, size] of all parts, after `settled`.

        Args:
            size: pixels a side.
            parts: the cache file and the image files of each part.
        """
        if self.loader != "memory":
            paths = [os.fsencode(file.path) for _, files in parts for file in files]
            return Files(np.array(paths), len(os.fsencode(parts[0][0].parent / "_")) - 1, size, self)
        tensors = [self._decoded(cache, files, size) for cache, files in parts]
        return torch.cat(tensors) if len(tensors) > 1 else tensors[0]

    def _decoded(self, cache: Path, files: list[Found], size: int) -> Tensor:
        def make() -> np.ndarray:
            paths = [file.path for file in files]
            return decode(paths, size, self.workers, self.bar).permute(0, 2, 3, 1).numpy()

        return torch.from_numpy(cached(cache, files, make, ("uint8", (len(files), size, size, 3)))).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Files:
    """Images [N, 3, size, size] that stay in files. Can be indexed like a tensor."""

    paths: np.ndarray  # [N] bytes: one block of memory, which worker processes share
    start: int  # length of the root's prefix in each path, in bytes
    size: int
    storage: Storage

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.paths), 3, self.size, self.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, part: slice | Tensor) -> "Files":
        return replace(self, paths=self.paths[part])

    def identity(self) -> Tensor:
        """Name, size and time of each file, which tell these images from others."""
        names = [zlib.crc32(os.path.basename(path)) for path in self.paths.tolist()]
        return torch.from_numpy(np.column_stack([names, self.sizes_and_times()]))

    def sizes_and_times(self) -> np.ndarray:
        """[N, 2] int64: bytes, and nanoseconds of the last change. Raises OSError if a file is gone."""

        def of(paths: np.ndarray) -> list[tuple[int, int]]:
            return [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, paths.tolist())]

        with ThreadPoolExecutor(self.storage.workers) as pool:  # for disks of high latency
            found = pool.map(of, np.array_split(self.paths, self.storage.workers))
            return np.array([each for part in found for each in part], np.int64).reshape(-1, 2)

    def names(self) -> list[str]:
        return [os.fsdecode(path) for path in self.paths.tolist()]

    def split(self, n: int) -> Iterator[Tensor]:
        """Decoded images, `n` at a time: [n, 3, size, size] uint8."""
        for start in range(0, len(self), n):
            yield decode(self[start : start + n].names(), self.size, self.storage.workers)
