"""The contract of the data sets, and their registry."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from models.near import unknown

from .storage import Files


class Shared(NamedTuple):
    """The whole batch, of which this process has a part. Each process computes it without communication."""

    labels: Tensor  # [all]
    index: Tensor  # [all]
    sizes: tuple[int, ...]  # number of samples of each process; their parts are in order of rank
    rank: int  # of this process


class Mixed(NamedTuple):
    """What each image of a batch is mixed with."""

    labels: Tensor  # [B] int64, of the other images
    share: Tensor  # [B] float32, weight of each image's own pixels and label


class Batch(NamedTuple):
    """The samples of a step, on the training device."""

    images: Tensor  # [B, C, H, W], or [B, V, C, H, W] if the method uses V views; normalised float32
    labels: Tensor  # [B] int64
    index: Tensor  # [B] int64, index of each sample in the training set (0 .. n_data - 1)
    whole: Shared | None = None  # with several processes
    # index and view of each sample, on the CPU: [B] int64 and [B, ...]
    drawn: tuple[Tensor, Tensor] | None = None
    mixed: Mixed | None = None  # with mixup or cutmix

    @property
    def total(self) -> int:
        """Number of samples in the batch of all processes."""
        return sum(self.whole.sizes) if self.whole else len(self.labels)

    @property
    def share(self) -> float:
        """Factor of a mean over this batch: with it, the mean over all processes is the whole batch's mean."""
        return len(self.labels) * len(self.whole.sizes) / self.total if self.whole else 1.0


@dataclass
class ImageSet:
    """A whole data set."""

    train_images: Tensor | Files  # [N, 3, H, W] uint8, in memory or in files
    train_labels: Tensor  # [N] int64
    val_images: Tensor | Files  # [M, 3, H, W] uint8
    val_labels: Tensor  # [M] int64
    classes: tuple[str, ...]
    mean: tuple[float, float, float]  # of the training images, in 0..1
    std: tuple[float, float, float]
    padding: int = 4  # pixels of zero padding before the random crop
    flip: bool = True  # random horizontal flip
    test_images: Tensor | Files | None = None  # [L, 3, H, W] uint8; with --val_split, the original val_images
    test_labels: Tensor | None = None
    val_paths: Sequence[str] = ()  # [M] of image files, below the data folder
    test_paths: Sequence[str] = ()


_datasets: dict[str, Callable[..., ImageSet]] = {}


def register(name: str) -> Callable:
    """Makes the decorated loader, (folder, image_size) -> ImageSet, available as `--dataset name`.

    A loader of image files also takes `storage`, which says where the images live.
    """

    def add(loader: Callable[..., ImageSet]) -> Callable[..., ImageSet]:
        _datasets[name] = loader
        return loader

    return add


def dataset_names() -> list[str]:
    return sorted(_datasets)


def find_dataset(name: str) -> Callable[..., ImageSet]:
    """The loader of this name. Raises ValueError, listing similar names, if there is none."""
    if name not in _datasets:
        raise unknown("data set", name, dataset_names())
    return _datasets[name]
