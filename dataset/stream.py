"""Images that stay in files: worker processes read, crop and stack them ahead of the training step.

Workers send bytes, a batch at a time. The device normalises them.
"""

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .augment import Augment, InMemory, Steps
from .base import ImageSet
from .cuts import Cut, PaddedCrop, Plain, ResizedCrop
from .dali import Dali
from .files import Unreadable
from .policies import Augmented
from .storage import LARGEST_KEPT, Files


class Reader(Dataset):
    """Runs in a worker: makes batches from arrays of indices and views."""

    def __init__(self, files: Files, cut: Cut) -> None:
        self.files, self.cut = files, cut

    def __getitem__(self, batch: tuple[np.ndarray, np.ndarray]) -> Tensor | str:
        index, view = batch
        try:
            return self.cut(self.files[index].names(), torch.from_numpy(view))
        except Unreadable as error:
            return str(error)


class Streamed(Augment):
    """Views of images in files, from worker processes that persist over epochs."""

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
            generator=torch.Generator(),  # not the global one, whose state a resumed run restores
        )

    def pixels(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        """As `Augment.pixels`.

        Raises Unreadable for an image that cannot be decoded. A second call ends the first one.
        """
        index, view = index.cpu().numpy(), view.cpu().numpy()
        self.batches[:] = [(index[step], view[step]) for step in steps]
        for pixels in self.loader:
            if isinstance(pixels, str):
                raise Unreadable(pixels)
            yield pixels.to(self.device, non_blocking=True)


def _start(worker: int) -> None:
    """Starts a worker. It leaves SIGINT and SIGTERM sent to the group to its parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # PIL's, about damaged EXIF data and the like
    if sys.platform == "linux":
        die_with_parent = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_until_parent_asks, daemon=True).start()


def _until_parent_asks() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def augmentation(data: ImageSet, device: torch.device | str, policy: str = "crop_flip", reprob: float = 0.0) -> Augment:
    """The training images with the data set's augmentation: padded crops, or above 64 pixels resized crops, and flips.

    Args:
        data: the data set.
        device: of the batches.
        policy: "crop_flip", or one of `POLICIES` to apply afterwards.
        reprob: probability of random erasing.
    """
    augment = crop_flip(data, device)
    if policy == "crop_flip" and not reprob:
        return augment
    return Augmented(augment, None if policy == "crop_flip" else policy, reprob)


def crop_flip(data: ImageSet, device: torch.device | str) -> Augment:
    images = data.train_images
    if isinstance(images, Tensor):
        return InMemory(images, data.mean, data.std, padding=data.padding, flip=data.flip, device=device)
    small = images.size <= LARGEST_KEPT
    cut = PaddedCrop(images.size, data.padding, data.flip) if small else ResizedCrop(images.size, data.flip)
    return _by_loader(images, cut, data.mean, data.std, device)


def plain(images: Tensor | Files, mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> Augment:
    """The images as they are validated on. Each has one view, 0."""
    if isinstance(images, Tensor):
        return InMemory(images, mean, std, padding=0, flip=False, device=device)
    return _by_loader(images, Plain(images.size), mean, std, device)


def _by_loader(files: Files, *how: Any) -> Augment:
    loader = Dali if files.storage.loader == "dali" else Streamed
    return loader(files, *how)
