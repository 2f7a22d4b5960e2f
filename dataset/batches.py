"""Batches: which samples make a step, in which views. `Augment` provides their images."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from .augment import Augment, Views
from .base import Batch, ImageSet, Mixed, Shared
from .mixing import Mixing
from .storage import Files
from .stream import plain


def limit(images: Tensor | Files, labels: Tensor, n: int, seed: int = 0) -> tuple[Tensor | Files, Tensor]:
    """A class-balanced subset of `n` samples, in their original order.

    Args:
        images, labels: [N, ...] and [N].
        n: size of the subset.
        seed: determines the choice alone; a smaller subset lies inside a larger one of the same seed.

    Returns:
        Images and labels of the subset.

    Raises:
        ValueError: n is below the number of classes or above N.
    """
    chosen = places(labels, n, seed)
    return images[chosen], labels[chosen]


def places(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """[n] indices of these samples, in order."""
    classes, labels_from_0 = labels.cpu().unique(return_inverse=True)
    if not len(classes) <= n <= len(labels):
        raise ValueError(f"expected {len(classes)} (one a class) to {len(labels)} (all) samples, found {n}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels_from_0[order].argsort(stable=True)]  # grouped by class, shuffled within each
    count = labels_from_0.bincount()
    rank = torch.arange(len(order)) - (count.cumsum(0) - count).repeat_interleave(count)
    # Takes the first sample of every class, then the second of every class, ...; the last round in random class order.
    turn = torch.randperm(len(classes), generator=generator)
    return order[(rank * len(classes) + turn[labels_from_0[order]]).argsort()[:n]].sort().values


def split(data: ImageSet, n: int) -> ImageSet:
    """Splits off `n` training samples, chosen as by `limit`, for validation. The old val_images become test_images.

    Raises ValueError if n is below the number of classes, or leaves a class without training samples.
    """
    chosen = places(data.train_labels, n)
    rest = torch.ones(len(data.train_labels), dtype=torch.bool)
    rest[chosen] = False
    left = rest.nonzero().squeeze(1)
    classes = len(data.train_labels.unique())
    if len(data.train_labels[left].unique()) < classes:
        raise ValueError(f"{n} of {len(rest)} training samples leave some of {classes} classes without any")
    return replace(
        data,
        train_images=data.train_images[left],
        train_labels=data.train_labels[left],
        val_images=data.train_images[chosen],
        val_labels=data.train_labels[chosen],
        test_images=data.val_images,
        test_labels=data.val_labels,
        val_paths=(),
        test_paths=data.val_paths,
    )


def bounds(n: int, parts: int) -> list[int]:
    """Cuts `n` samples evenly into `parts`: part i goes from element i to element i + 1 of the result."""
    return [n * i // parts for i in range(parts + 1)]


class Batches:
    """Training batches: every sample once an epoch. Order and views depend only on (seed, epoch).

    The last batch may be smaller, but never has a single sample, which BatchNorm cannot train on. Of several processes,
    each gets its part of every batch, in order, so that together they see what one process would see.

    Args:
        augment: an `Augment`, or a method's `Views`.
        labels: [N], on the training device.
        batch_size: samples a step, of all processes together.
        seed: of order and views.
        drop_last: leave out a smaller last batch.
        part: rank of this process, and the world size.

    Attributes:
        mixing: set it to mix the images of each batch (all views of a sample alike).

    Raises:
        ValueError: no batch is left, or a process would have fewer than two samples.

    Example:
        for batch in Batches(augment, labels, 64, seed=1).epoch(1):
            logits = model(batch.images)
    """

    mixing: Mixing | None = None

    def __init__(
        self,
        augment: Augment | Views,
        labels: Tensor,
        batch_size: int,
        *,
        seed: int,
        drop_last: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.augment, self.labels, self.batch_size, self.seed = augment, labels, batch_size, seed
        self.rank, self.world = part
        self.n_data = len(labels)
        rest = self.n_data % batch_size
        self.steps = self.n_data // batch_size + (rest >= 2 * self.world and not drop_last)
        if not self.steps:
            raise ValueError(f"{self.n_data} samples leave no batch of {batch_size} (drop_last={drop_last})")
        if batch_size < 2 * self.world:
            raise ValueError(f"a batch of {batch_size} leaves fewer than 2 samples for each of {self.world} processes")

    def __len__(self) -> int:
        return self.steps

    @property
    def sizes(self) -> list[int]:
        """Number of samples of each step, for all processes together."""
        return [min(self.batch_size, self.n_data - step * self.batch_size) for step in range(self.steps)]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches of steps `start_step` .. len(self) - 1 of that epoch. No step waits for the device."""
        # A hash, because with seed + epoch, run 1 at epoch 2 would have the draws of run 2 at epoch 1.
        seed = hashlib.blake2b(f"{self.seed} {epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
        order = torch.randperm(self.n_data, generator=generator)
        views = self.augment.draw(self.n_data, generator)
        drawn_for = -(-self.n_data // self.batch_size)  # draws for every batch, even one that is too small and skipped
        mixes = self.mixing.draw(drawn_for, generator) if self.mixing else [None] * drawn_for
        steps = [self._places(step) for step in range(start_step, self.steps)]
        stream = self._images(order, views, steps)
        drawn, order = order, order.to(self.labels.device)
        labels = self.labels[order]
        for images, (own, every, sizes), mix in zip(stream, steps, mixes[start_step : self.steps], strict=True):
            whole = Shared(labels[every], order[every], sizes, self.rank) if self.world > 1 else None
            mixed = None
            if mix:
                images = mix(images)
                others = labels[every].roll(1)[own.start - every.start : own.stop - every.start]
                mixed = Mixed(others, torch.full_like(others, mix.share, dtype=torch.float32))
            yield Batch(images, labels[own], order[own], whole, (drawn[own], views[own]), mixed)

    def _images(self, order: Tensor, views: Tensor, steps: list[tuple[slice, slice, Any]]) -> Iterator[Tensor]:
        """Images of each step. With mixing, preceded by the image that the first one is mixed with."""
        if not self.mixing:
            return self.augment.stream(order, views, [own for own, _, _ in steps])
        places = []
        for own, every, _ in steps:
            ahead = (own.start if own.start > every.start else every.stop) - 1
            places.append(torch.tensor([ahead, *range(own.start, own.stop)]))
        at = torch.cat([order[:0], *places])
        ends = accumulate(map(len, places), initial=0)
        return self.augment.stream(order[at], views[at], [slice(*ends) for ends in pairwise(ends)])

    def _places(self, step: int) -> tuple[slice, slice, tuple[int, ...]]:
        """A step's slices of the order, of this process and of all, and the number of samples of each process."""
        start = step * self.batch_size
        cuts = [start + cut for cut in bounds(min(self.batch_size, self.n_data - start), self.world)]
        sizes = tuple(end - begin for begin, end in pairwise(cuts))
        return slice(*cuts[self.rank : self.rank + 2]), slice(start, cuts[-1]), sizes


class ValBatches:
    """Validation batches: every sample once, in order, normalised, without augmentation.

    Args:
        images, labels: [N, 3, H, W] and [N].
        batch_size: samples a step, of all processes together.
        mean, std: of each channel, in 0..1.
        device: of the batches.
        part: rank of this process, and the world size; no sample is in two parts.
    """

    classes: Sequence[str] = ()
    paths: Sequence[str] = ()

    def __init__(
        self,
        images: Tensor | Files,
        labels: Tensor,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        device: torch.device | str,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        rank, world = part
        start, end = bounds(len(labels), world)[rank : rank + 2]
        images, labels = images[start:end], labels[start:end]
        self.labels = labels.to(device)
        self.n_data, self.batch_size = len(labels), -(-batch_size // world)
        self.plain = plain(images, mean, std, device)
        self.index = torch.arange(self.n_data, device=device)

    @classmethod
    def of(
        cls, data: ImageSet, batch_size: int, device: torch.device | str, part: tuple[int, int] = (0, 1)
    ) -> "ValBatches":
        """The validation batches of a data set."""
        batches = cls(data.val_images, data.val_labels, batch_size, data.mean, data.std, device=device, part=part)
        batches.classes, batches.paths = data.classes, data.val_paths
        return batches

    def __len__(self) -> int:
        return -(-self.n_data // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        steps = [slice(i, i + self.batch_size) for i in range(0, self.n_data, self.batch_size)]
        view = torch.zeros_like(self.index)  # the only view
        for images, step in zip(self.plain.stream(self.index, view, steps), steps, strict=True):
            yield Batch(images, self.labels[step], self.index[step])
