"""Images that stay in their files: read, cropped and stacked by worker processes ahead of the training step.

Bytes travel, a batch at a time; they are normalised on the device.
"""

import ctypes
import math
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as transforms

from .augment import Augment, InMemory, Steps
from .base import ImageSet
from .files import Unreadable, opened, read
from .storage import LARGEST_KEPT, Files


class Cut(Protocol):
    """What is made of image files."""

    outcomes: int | None  # as of Augment

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n] int64 on the CPU: numbers that each fix a view of an image."""

    def __call__(self, paths: list[str], view: Tensor) -> Tensor:
        """[B, S, S, 3] uint8. Raises Unreadable, which names the file."""


class PaddedCrop:
    """What `InMemory` makes of small images."""

    def __init__(self, size: int, padding: int, flip: bool) -> None:
        self.size = size
        self.keep = partial(InMemory, mean=(0, 0, 0), std=(1, 1, 1), padding=padding, flip=flip)
        like = self.keep(torch.zeros(1, 3, size, size))
        self.draw, self.outcomes = like.draw, like.outcomes

    def __call__(self, paths: list[str], view: Tensor) -> Tensor:
        images = torch.from_numpy(np.stack([read(path, self.size) for path in paths]))
        return self.keep(images.permute(0, 3, 1, 2)).crop(torch.arange(len(paths)), view)


class ResizedCrop:
    """A random part of 8 to 100 % of the area, 3:4 to 4:3, resized (bilinear, antialiased), and a random flip.

    As torchvision's RandomResizedCrop and RandomHorizontalFlip. A view is the seed of these random numbers.
    """

    outcomes = None

    def __init__(self, size: int, flip: bool) -> None:
        self.size, self.flip = size, flip

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2**63 - 1, (n,), generator=generator)

    def __call__(self, paths: list[str], view: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([self.one(*each) for each in zip(paths, view.tolist(), strict=True)]))

    def one(self, path: str, seed: int) -> np.ndarray:
        with opened(path) as file:
            box, flip = self.box(*file.size, seed)
            image = transforms.resized_crop(file.convert("RGB"), *box, [self.size, self.size])
        return np.asarray(image)[:, ::-1] if flip else np.asarray(image)

    def box(self, width: int, height: int, seed: int) -> tuple[tuple[int, int, int, int], bool]:
        """(top, left, height, width) of the part, and whether it is flipped."""
        rng = random.Random(seed)
        flip = self.flip and rng.random() < 0.5
        for _ in range(10):
            area = width * height * rng.uniform(0.08, 1)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return (rng.randint(0, height - h), rng.randint(0, width - w), h, w), flip
        # the centre, as much of it as has such a ratio
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return ((height - h) // 2, (width - w) // 2, h, w), flip


class Plain:
    """The centre of the resized image; from 65 pixels on of a larger one, 256 for a centre of 224 and in proportion."""

    outcomes = 1

    def __init__(self, size: int) -> None:
        self.size, self.resized = size, size if size <= LARGEST_KEPT else round(size * 256 / 224)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(n, dtype=torch.int64)

    def __call__(self, paths: list[str], view: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([read(path, self.size, self.resized) for path in paths]))


class Reader(Dataset):
    """What a worker runs: batches of an index and a view, as arrays."""

    def __init__(self, files: Files, cut: Cut) -> None:
        self.files, self.cut = files, cut

    def __getitem__(self, batch: tuple[np.ndarray, np.ndarray]) -> Tensor | str:
        index, view = batch
        try:
            return self.cut(self.files[index].names(), torch.from_numpy(view))
        except Unreadable as error:
            return str(error)


class Streamed(Augment):
    """Views of images in files, by worker processes that stay from epoch to epoch."""

    def __init__(
        self, files: Files, cut: Cut, mean: Sequence[float], std: Sequence[float], device: torch.device | str
    ) -> None:
        super().__init__(files.shape, mean, std, device)
        self.draw, self.outcomes = cut.draw, cut.outcomes
        self.batches: list[tuple[np.ndarray, np.ndarray]] = []
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        self.loader = DataLoader(
            Reader(files, cut),
            batch_size=None,  # an item is a batch
            sampler=self.batches,
            num_workers=min(files.storage.workers, cores),
            persistent_workers=True,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_start,
            generator=torch.Generator(),  # else the global one, which resumption has to find as it was
        )

    def pixels(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        """Raises Unreadable for an image that cannot be decoded. One call at a time: a second one ends the first."""
        index, view = index.cpu().numpy(), view.cpu().numpy()
        self.batches[:] = [(index[step], view[step]) for step in steps]
        for pixels in self.loader:
            if isinstance(pixels, str):
                raise Unreadable(pixels)
            yield pixels.to(self.device, non_blocking=True)


def _start(worker: int) -> None:
    """Leaves it to the parent what Ctrl-C and SIGTERM to the whole group do, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # of PIL, about damaged EXIF data and the like
    if sys.platform == "linux":
        die_with_parent = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_until_parent_asks, daemon=True).start()


def _until_parent_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def augmentation(data: ImageSet, device: torch.device | str) -> Augment:
    """The training images, augmented as the data set says: padded crops, of files above 64 pixels resized crops."""
    images = data.train_images
    if isinstance(images, Tensor):
        return InMemory(images, data.mean, data.std, padding=data.padding, flip=data.flip, device=device)
    small = images.size <= LARGEST_KEPT
    cut = PaddedCrop(images.size, data.padding, data.flip) if small else ResizedCrop(images.size, data.flip)
    return _by_loader(images, cut, data.mean, data.std, device)


def plain(images: Tensor | Files, mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> Augment:
    """Images as they are validated on; each has one view, 0."""
    if isinstance(images, Tensor):
        return InMemory(images, mean, std, padding=0, flip=False, device=device)
    return _by_loader(images, Plain(images.size), mean, std, device)


def _by_loader(files: Files, *how: Any) -> Augment:
    if files.storage.loader != "dali":
        return Streamed(files, *how)
    from .dali import Dali

    return Dali(files, *how)
