"""What every data set gives, and the table of data sets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from models.near import unknown

from .storage import Files


class Shared(NamedTuple):
    """A batch of which every process has a part: what each of them knows of the whole without asking the others."""

    labels: Tensor  # [all]
    index: Tensor  # [all]
    sizes: tuple[int, ...]  # samples of each process, whose parts follow each other
    rank: int  # of this process


class Mixed(NamedTuple):
    """What each image of a batch has been mixed with."""

    labels: Tensor  # [B] int64, of the other images
    share: Tensor  # [B] float32, how much of each image, and of its label, is its own


class Batch(NamedTuple):
    """One step's samples, on the training device."""

    images: Tensor  # [B, C, H, W], or [B, V, C, H, W] where the method asked for V views; normalised float32
    labels: Tensor  # [B] int64
    index: Tensor  # [B] int64, place of each sample in the training set (0 .. n_data - 1)
    whole: Shared | None = None  # with several processes
    # index and view of each sample on the CPU, where they were drawn: [B] int64 and [B, ...]
    drawn: tuple[Tensor, Tensor] | None = None
    mixed: Mixed | None = None  # with mixup or cutmix

    @property
    def total(self) -> int:
        """Number of samples, those of the other processes included."""
        return sum(self.whole.sizes) if self.whole else len(self.labels)

    @property
    def share(self) -> float:
        """What a mean over this batch is multiplied by, so that the mean over processes is that of the whole batch."""
        return len(self.labels) * len(self.whole.sizes) / self.total if self.whole else 1.0


@dataclass
class ImageSet:
    """A whole data set."""

    train_images: Tensor | Files  # [N, 3, H, W] uint8, in memory or in their files
    train_labels: Tensor  # [N] int64
    val_images: Tensor | Files  # [M, 3, H, W] uint8
    val_labels: Tensor  # [M] int64
    classes: tuple[str, ...]
    mean: tuple[float, float, float]  # of the training images, in 0..1
    std: tuple[float, float, float]
    padding: int = 4  # pixels of zero padding before the random crop
    flip: bool = True  # random horizontal flip
    test_images: Tensor | Files | None = None  # [L, 3, H, W] uint8, where others are validated while training
    test_labels: Tensor | None = None
    val_paths: Sequence[str] = ()  # [M] of image files, below the data folder
    test_paths: Sequence[str] = ()


_datasets: dict[str, Callable[..., ImageSet]] = {}


def register(name: str) -> Callable:
    """Makes the decorated loader, (folder, image_size) -> ImageSet, available as `--dataset name`.

    A loader of image files also takes `storage`, which says where they live.
    """

    def add(loader: Callable[..., ImageSet]) -> Callable[..., ImageSet]:
        _datasets[name] = loader
        return loader

    return add


def dataset_names() -> list[str]:
    return sorted(_datasets)


def find_dataset(name: str) -> Callable[..., ImageSet]:
    """Raises ValueError, with the near names, where there is no data set of that name."""
    if name not in _datasets:
        raise unknown("data set", name, dataset_names())
    return _datasets[name]
