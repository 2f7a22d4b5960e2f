"""The image files of a data set, before any of them is opened."""

from pathlib import Path
from typing import NamedTuple

import torch

from .base import ImageSet
from .files import Found
from .pixels import Channels
from .storage import Storage


class Listing(NamedTuple):
    """The image files of a data set and their labels, which are indices of `classes`."""

    root: Path
    classes: tuple[str, ...]
    train_files: list[Found]
    train_labels: list[int]
    val_files: list[Found]
    val_labels: list[int]

    def at(self, size: int, storage: Storage, mean: Channels, std: Channels) -> ImageSet:
        """The data set in images of `size` pixels.

        Those in memory are also cached beside train/. Raises as `Storage.settled`.
        """
        storage = storage.settled(size, len(self.train_files), len(self.val_files))
        return ImageSet(
            storage.images(size, (self.root / f".cache-{size}-train.npz", self.train_files)),
            torch.tensor(self.train_labels),
            storage.images(size, (self.root / f".cache-{size}-val.npz", self.val_files)),
            torch.tensor(self.val_labels),
            self.classes,
            mean,
            std,
            padding=size // 8,
            val_paths=[file.path for file in self.val_files],
        )
