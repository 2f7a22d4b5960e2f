"""Random views of the training images, normalised on the training device."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

Steps = Sequence[slice]


def upload(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, which is not waited for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def columns(*drawn: Tensor) -> Tensor:
    """Numbers [n] or [n, ...] of the same samples side by side: [n, all]."""
    return torch.cat([x.flatten(1) if x.dim() > 1 else x.unsqueeze(1) for x in drawn], 1)


def parted(view: Tensor, *widths: int) -> tuple[Tensor, ...]:
    """What `columns` has put side by side; widths: of all but the first."""
    first, *rest = view.split([view.shape[1] - sum(widths), *widths], 1)
    return first.squeeze(1), *rest


def together(index: Tensor, view: Tensor, steps: Steps, n: int) -> tuple[Tensor, Tensor, Steps, list[list[int]]]:
    """Indices, views and slices of them in which `n` steps are one, and the sizes of the steps in each."""
    sizes = [len(index[step]) for step in steps]
    index, view = (torch.cat([x[:0], *(x[step] for step in steps)]) for x in (index, view))
    groups = [sizes[i : i + n] for i in range(0, len(sizes), n)]
    ends = accumulate(map(sum, groups), initial=0)
    return index, view, [slice(*ends) for ends in pairwise(ends)], groups


class Augment:
    """One random view of every sample: what `Batches` takes its images from, and methods make their own views of.

    shape [N, C, H, W] of all images; mean, std per channel in 0..1. A subclass has `draw` and `pixels`.
    """

    outcomes: int | None = None  # number of views that one sample has, all equally likely; None: too many to count
    steps_at_once = 1

    def __init__(
        self, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], device: torch.device | str
    ) -> None:
        self.shape, self.device = tuple(shape), torch.device(device)
        area = self.shape[2] * self.shape[3]
        # (x / 255 - mean) / std as one multiply-add, over rows long enough to be vectorised.
        mean, std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.scale = (1 / (255 * std)).float().repeat(area).to(device)
        self.shift = (-mean / std).float().repeat(area).to(device)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n] or [n, ...] int64 on the CPU: numbers that fix a random view of each sample."""
        raise NotImplementedError

    def pixels(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        """For each of `steps` samples index[step] in views view[step], as bytes on the device: [B, H, W, C] uint8.

        All steps are given at once so that images can be read ahead.
        """
        raise NotImplementedError

    def stream(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        """The same, normalised: [B, C, H, W] float32, channels_last."""
        index, view, steps, sizes = together(index, view, steps, self.steps_at_once)
        for x, step, some in zip(self.pixels(index, view, steps), steps, sizes, strict=True):
            yield from self.finish(x, view[step]).split(some)

    def finish(self, x: Tensor, view: Tensor) -> Tensor:
        """Pixels [B, ..., H, W, C] uint8 of samples in views `view` [B] as the network takes them, in new memory."""
        return self.normalise(x)

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        """The only step of `stream`."""
        return next(iter(self.stream(index, view, [slice(None)])))

    def normalise(self, x: Tensor) -> Tensor:
        """[..., H, W, C] uint8 as [..., C, H, W] float32, in the same memory order: channels_last."""
        x_rows = x.reshape(-1, self.scale.numel()).float()
        return torch.addcmul(self.shift, x_rows, self.scale).view(x.shape).movedim(-1, -3)


class Views:
    """Several views of every sample, made of the one that `augment` gives. A subclass has `stream`.

    Stands for `augment` in `Batches`. Raises ValueError where `augment` gives several views itself.
    """

    outcomes: int | None = None  # as of Augment

    def __init__(self, augment: Augment) -> None:
        if not isinstance(augment, Augment):
            raise ValueError(f"{type(self).__name__} needs single images, {type(augment).__name__} gives views")
        self.augment = augment

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, ...] int64 on the CPU: what fixes all views of a sample."""
        return self.augment.draw(n, generator)

    def stream(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        """For each of `steps` samples index[step] in views view[step]: [B, V, C, H, W] float32, channels_last."""
        raise NotImplementedError

    __call__ = Augment.__call__


class InMemory(Augment):
    """Random crop after zero padding, random flip, as torchvision's transforms compute them one by one.

    images [N, C, H, W] uint8; padding in pixels on each side. Holds N (H + 2 padding) (W + 2 padding) C bytes on
    `device`.
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
        super().__init__(images.shape, mean, std, device)
        n, c, h, w = self.shape
        side = 2 * padding + 1
        high, wide = h + 2 * padding, w + 2 * padding
        padded = torch.zeros(n, high, wide, c, dtype=torch.uint8, device=device)
        padded[:, padding : padding + h, padding : padding + w] = images.to(device).permute(0, 2, 3, 1)
        # Row i of this view is the crop whose upper left corner is pixel i of all the images' pixels, so that one
        # index_select cuts a batch; on a CPU it takes half the time of indexing by (image, dy, dx).
        last = (n - 1) * high * wide + (side - 1) * (wide + 1)
        self.crops = padded.as_strided((last + 1, h, w * c), (c, wide * c, 1))
        self.area = high * wide
        self.flip = flip
        corner = (torch.arange(side)[:, None] * wide + torch.arange(side)).flatten()
        self.corner = (corner.repeat_interleave(2) if flip else corner).to(device)  # [outcomes]
        self.outcomes = len(self.corner)
        self.steps_at_once = 8 if self.device.type == "cuda" else 1  # small batches leave a GPU waiting for launches

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n] int64 on the CPU, a view for each sample, all equally likely.

        A view is (dy * (2 padding + 1) + dx) * 2 + flip, with the crop's upper left corner at pixel (dy, dx) of the
        padded image; without flips it is dy * (2 padding + 1) + dx.
        """
        return torch.randint(self.outcomes, (n,), generator=generator)

    def pixels(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        index, view = index.to(self.device), view.to(self.device)  # at once, so that no step waits for the device
        return (self.crop(index[step], view[step]) for step in steps)

    def crop(self, index: Tensor, view: Tensor) -> Tensor:
        """Samples `index` [B] in views `view` [B], both on the device, as bytes: [B, H, W, C] uint8."""
        _, c, h, w = self.shape
        x = self.crops.index_select(0, torch.add(self.corner[view], index, alpha=self.area)).view(-1, h, w, c)
        return torch.where((view & 1).bool()[:, None, None, None], x.flip(2), x) if self.flip else x
