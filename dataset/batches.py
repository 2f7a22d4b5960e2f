"""Batches of small images: a whole data set on the training device as uint8, augmented there a batch at a time."""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .base import Batch, ImageSet, Shared


def limit(images: Tensor, labels: Tensor, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`n` of the samples [N, ...], [N], in their order, as equally many of each class as there are.

    The choice depends on `seed` alone, and a smaller subset lies inside a larger one of the same seed. Raises
    ValueError where `n` is below the number of classes or above N.
    """
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
    chosen = order[(rank * len(classes) + turn[labels_from_0[order]]).argsort()[:n]].sort().values
    return images[chosen.to(images.device)], labels[chosen.to(labels.device)]


def bounds(n: int, parts: int) -> list[int]:
    """Where `n` samples are cut for `parts` processes, as evenly as can be: part i is from the i-th to the next."""
    return [n * i // parts for i in range(parts + 1)]


class Augment:
    """Random crop after zero padding, random flip, normalisation, as torchvision's transforms compute them one by one.

    images [N, C, H, W] uint8; mean, std per channel in 0..1; padding in pixels on each side. Holds N (H + 2 padding)
    (W + 2 padding) C bytes on `device`. A method's own views are an object with the same `draw` and `__call__`.
    """

    def __init__(
        self,
        images: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        padding: int = 4,
        flip: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        n, c, h, w = self.shape = images.shape
        side = 2 * padding + 1
        high, wide = h + 2 * padding, w + 2 * padding
        padded = torch.zeros(n, high, wide, c, dtype=torch.uint8, device=device)
        padded[:, padding : padding + h, padding : padding + w] = images.to(device).permute(0, 2, 3, 1)
        # Row i of this view is the crop whose upper left corner is pixel i of all the images' pixels, so that one
        # index_select cuts a batch; on a CPU it takes half the time of indexing by (image, dy, dx).
        last = (n - 1) * high * wide + (side - 1) * (wide + 1)
        self.crops = padded.as_strided((last + 1, h, w * c), (c, wide * c, 1))
        self.pixels = high * wide
        self.flip = flip
        corner = (torch.arange(side)[:, None] * wide + torch.arange(side)).flatten()
        self.corner = (corner.repeat_interleave(2) if flip else corner).to(device)  # [outcomes]
        # (x / 255 - mean) / std as one multiply-add, over rows long enough to be vectorised.
        mean, std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.scale = (1 / (255 * std)).float().repeat(h * w).to(device)
        self.shift = (-mean / std).float().repeat(h * w).to(device)

    @classmethod
    def of(cls, data: ImageSet, device: torch.device | str) -> "Augment":
        """The training images of a data set, augmented as it says."""
        return cls(data.train_images, data.mean, data.std, padding=data.padding, flip=data.flip, device=device)

    @property
    def outcomes(self) -> int:
        """Number of views that one sample has: (2 padding + 1)^2 crops, twice that with flips."""
        return len(self.corner)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n] int64 on the CPU, a view for each sample, all equally likely.

        A view is (dy * (2 padding + 1) + dx) * 2 + flip, with the crop's upper left corner at pixel (dy, dx) of the
        padded image; without flips it is dy * (2 padding + 1) + dx.
        """
        return torch.randint(self.outcomes, (n,), generator=generator)

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        """Samples `index` [B] in views `view` [B], both on the device: [B, C, H, W] float32, channels_last."""
        return self.normalise(self.crop(index, view))

    def crop(self, index: Tensor, view: Tensor) -> Tensor:
        """The same as bytes, before normalisation: [B, H, W, C] uint8."""
        _, c, h, w = self.shape
        x = self.crops.index_select(0, torch.add(self.corner[view], index, alpha=self.pixels)).view(-1, h, w, c)
        return torch.where((view & 1).bool()[:, None, None, None], x.flip(2), x) if self.flip else x

    def normalise(self, x: Tensor) -> Tensor:
        """[..., H, W, C] uint8 as [..., C, H, W] float32, in the same memory order: channels_last."""
        x_rows = x.reshape(-1, self.scale.numel()).float()
        return torch.addcmul(self.shift, x_rows, self.scale).view(x.shape).movedim(-1, -3)


class Batches:
    """Training batches: every sample once an epoch, in an order and in views that depend on (seed, epoch) alone.

    augment: an `Augment`, or a method's own object with its `draw` and `__call__`; labels [N] on the training device. A
    smaller last batch is given unless `drop_last`, but never one of a single sample, which BatchNorm cannot train on.
    part: this process and their number; each batch is shared out among them in its order, so that together they see
    what a single process sees. Raises ValueError where that leaves no batch, or a process without two samples.
    """

    def __init__(
        self,
        augment: Augment,
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

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Steps `start_step` .. len(self) - 1 of that epoch; no step waits for the device."""
        # A hash, because seed + epoch would give run 1 at epoch 2 the draws of run 2 at epoch 1.
        mixed = hashlib.blake2b(f"{self.seed} {epoch}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed, "little"))
        drawn = torch.randperm(self.n_data, generator=generator), self.augment.draw(self.n_data, generator)
        order, views = (x.to(self.labels.device) for x in drawn)
        for step in range(start_step, self.steps):
            part, whole = slice(step * self.batch_size, (step + 1) * self.batch_size), None
            if self.world > 1:
                every = order[part]
                cuts = bounds(len(every), self.world)
                sizes = tuple(end - start for start, end in pairwise(cuts))
                whole = Shared(self.labels[every], every, sizes, self.rank)
                part = slice(part.start + cuts[self.rank], part.start + cuts[self.rank + 1])
            index = order[part]
            here = drawn[0][part], drawn[1][part]
            yield Batch(self.augment(index, views[part]), self.labels[index], index, whole, here)


class ValBatches:
    """Validation batches: every sample once, in order, normalised and not augmented; arguments as of `Augment`.

    part: this process and their number; each has a part of the set, no sample is in two.
    """

    def __init__(
        self,
        images: Tensor,
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
        self.plain = Augment(images, mean, std, padding=0, flip=False, device=device)
        self.index = torch.arange(self.n_data, device=device)
        self.view = torch.zeros_like(self.index)  # the only one that there is

    @classmethod
    def of(
        cls, data: ImageSet, batch_size: int, device: torch.device | str, part: tuple[int, int] = (0, 1)
    ) -> "ValBatches":
        return cls(data.val_images, data.val_labels, batch_size, data.mean, data.std, device=device, part=part)

    def __len__(self) -> int:
        return -(-self.n_data // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self.n_data, self.batch_size):
            part = slice(start, start + self.batch_size)
            index = self.index[part]
            yield Batch(self.plain(index, self.view[part]), self.labels[part], index)
