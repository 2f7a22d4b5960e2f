"""Crops of image files, in the size that the network takes."""

import math
import random
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from .augment import InMemory
from .files import read, rgb
from .storage import LARGEST_KEPT


class Cut(Protocol):
    """Turns image files and views into pixels."""

    outcomes: int | None  # as in Augment

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n] int64 on the CPU: integers that each determine a view of an image."""

    def __call__(self, paths: list[str], view: Tensor) -> Tensor:
        """[B, S, S, 3] uint8. Raises Unreadable, which names the file."""


class PaddedCrop:
    """The crops and flips of `InMemory`, from files."""

    def __init__(self, size: int, padding: int, flip: bool) -> None:
        self.size = size
        self.keep = partial(InMemory, mean=(0, 0, 0), std=(1, 1, 1), padding=padding, flip=flip)
        like = self.keep(torch.zeros(1, 3, size, size))
        self.draw, self.outcomes = like.draw, like.outcomes

    def __call__(self, paths: list[str], view: Tensor) -> Tensor:
        images = torch.from_numpy(np.stack([read(path, self.size) for path in paths]))
        return self.keep(images.permute(0, 3, 1, 2)).crop(torch.arange(len(paths)), view)


class ResizedCrop:
    """A random crop of 8 to 100 % of the area, 3:4 to 4:3, resized (bilinear, antialiased), and a random flip.

    As torchvision's RandomResizedCrop and RandomHorizontalFlip. A view is the seed of the random numbers.
    """

    outcomes = None

    def __init__(self, size: int, flip: bool) -> None:
        self.size, self.flip = size, flip

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(2**63 - 1, (n,), generator=generator)

    def __call__(self, paths: list[str], view: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([self.one(*each) for each in zip(paths, view.tolist(), strict=True)]))

    def one(self, path: str, seed: int) -> np.ndarray:
        image = rgb(path)
        box, flip = self.box(*image.size, seed)
        image = transforms.resized_crop(image, *box, [self.size, self.size])
        return np.asarray(image)[:, ::-1] if flip else np.asarray(image)

    def box(self, width: int, height: int, seed: int) -> tuple[tuple[int, int, int, int], bool]:
        """(top, left, height, width) of the crop, and whether it is flipped."""
        rng = random.Random(seed)
        flip = self.flip and rng.random() < 0.5
        for _ in range(10):
            area = width * height * rng.uniform(0.08, 1)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return (rng.randint(0, height - h), rng.randint(0, width - w), h, w), flip
        # the largest centre crop with an allowed ratio
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        return ((height - h) // 2, (width - w) // 2, h, w), flip


class Plain:
    """The centre crop of the resized image.

    Above 64 pixels it is resized to more: 256 for a crop of 224, and in proportion.
    """

    outcomes = 1

    def __init__(self, size: int) -> None:
        self.size, self.resized = size, size if size <= LARGEST_KEPT else round(size * 256 / 224)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(n, dtype=torch.int64)

    def __call__(self, paths: list[str], view: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([read(path, self.size, self.resized) for path in paths]))
