"""Batches: which samples make a step, in which views; where their images come from is `Augment`'s."""

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
    """`n` of the samples [N, ...], [N], in their order, as equally many of each class as there are.

    The choice depends on `seed` alone, and a smaller subset lies inside a larger one of the same seed. Raises
    ValueError where `n` is below the number of classes or above N.
    """
    chosen = places(labels, n, seed)
    return images[chosen], labels[chosen]


def places(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """[n] where these samples are, in their order."""
    classes, labels_from_0 = labels.cpu().unique(return_inverse=True)
    if not len(classes) <= n <= len(labels):
        raise ValueError(f"expected {len(classes)} (one a class) to {len(labels)} (all) samples, found {n}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    order = order[labels_from_0[order].argsort(stable=True)]  # grouped by class, shuffled within each
    count = labels_from_0.bincount()
    rank = torch.arange(len(order)) - (count.cumsum(0) - count).repeat_interleave(count)
    # Every class gives its first sample, then every class its second ...; a random order of classes settles the rest.
    turn = torch.randperm(len(classes), generator=generator)
    return order[(rank * len(classes) + turn[labels_from_0[order]]).argsort()[:n]].sort().values


def split(data: ImageSet, n: int) -> ImageSet:
    """`n` of the training samples, chosen as by `limit`, are those that are validated; `test_images` are what was.

    Raises ValueError where `n` is below the number of classes, or leaves a class without training samples.
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
    """Where `n` samples are cut for `parts` processes, as evenly as can be: part i is from the i-th to the next."""
    return [n * i // parts for i in range(parts + 1)]


class Batches:
    """Training batches: every sample once an epoch, in an order and in views that depend on (seed, epoch) alone.

    augment: an `Augment`, or a method's own `Views`; labels [N] on the training device. A smaller last batch is given
    unless `drop_last`, but never one of a single sample, which BatchNorm cannot train on. part: this process and their
    number; each batch is shared out among them in its order, so that together they see what a single process sees.
    mixing: set by who makes them where the images of a batch are mixed, all views of a sample alike.
    Raises ValueError where that leaves no batch, or a process without two samples.
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
            raise ValueError(f"a batch of {batch_size} leaves less than 2 samples for each of {self.world} processes")

    def __len__(self) -> int:
        return self.steps

    @property
    def sizes(self) -> list[int]:
        """Samples of each step, those of all processes."""
        return [min(self.batch_size, self.n_data - step * self.batch_size) for step in range(self.steps)]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Steps `start_step` .. len(self) - 1 of that epoch; no step waits for the device."""
        # A hash, because seed + epoch would give run 1 at epoch 2 the draws of run 2 at epoch 1.
        seed = hashlib.blake2b(f"{self.seed} {epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
        order = torch.randperm(self.n_data, generator=generator)
        views = self.augment.draw(self.n_data, generator)
        drawn_for = -(-self.n_data // self.batch_size)  # also for a last batch that is too small for some processes
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
        """Of each step; where they are mixed, ahead of them the one that the first is mixed with."""
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
        """Where a step's samples are in the order: this process's, all; and the number of each process."""
        start = step * self.batch_size
        cuts = [start + cut for cut in bounds(min(self.batch_size, self.n_data - start), self.world)]
        sizes = tuple(end - begin for begin, end in pairwise(cuts))
        return slice(*cuts[self.rank : self.rank + 2]), slice(start, cuts[-1]), sizes


class ValBatches:
    """Validation batches: every sample once, in order, normalised and not augmented; arguments as of `InMemory`.

    part: this process and their number; each has a part of the set, no sample is in two. classes, paths: the data
    set's, of all samples, for who saves what is predicted.
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
        batches = cls(data.val_images, data.val_labels, batch_size, data.mean, data.std, device=device, part=part)
        batches.classes, batches.paths = data.classes, data.val_paths
        return batches

    def __len__(self) -> int:
        return -(-self.n_data // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        steps = [slice(i, i + self.batch_size) for i in range(0, self.n_data, self.batch_size)]
        view = torch.zeros_like(self.index)  # the only one that there is
        for images, step in zip(self.plain.stream(self.index, view, steps), steps, strict=True):
            yield Batch(images, self.labels[step], self.index[step])
