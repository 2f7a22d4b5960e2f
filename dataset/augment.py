"""Random views of the training images, normalised on the training device."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

Steps = Sequence[slice]


def upload(x: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to the device, without waiting."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def columns(*drawn: Tensor) -> Tensor:
    """Concatenates tensors [n] or [n, ...] of the same samples: [n, all]."""
    return torch.cat([x.flatten(1) if x.dim() > 1 else x.unsqueeze(1) for x in drawn], 1)


def parted(view: Tensor, *widths: int) -> tuple[Tensor, ...]:
    """Splits what `columns` concatenated. widths: of all but the first."""
    first, *rest = view.split([view.shape[1] - sum(widths), *widths], 1)
    return first.squeeze(1), *rest


def together(index: Tensor, view: Tensor, steps: Steps, n: int) -> tuple[Tensor, Tensor, Steps, list[list[int]]]:
    """Merges every `n` steps into one.

    Returns indices, views, the merged slices, and the sizes of the steps in each.
    """
    sizes = [len(index[step]) for step in steps]
    index, view = (torch.cat([x[:0], *(x[step] for step in steps)]) for x in (index, view))
    groups = [sizes[i : i + n] for i in range(0, len(sizes), n)]
    ends = accumulate(map(sum, groups), initial=0)
    return index, view, [slice(*ends) for ends in pairwise(ends)], groups


class Augment:
    """One random view of every sample. `Batches` takes its images from it; methods build their own views on it.

    A subclass implements `draw` and `pixels`.

    Args:
        shape: [N, C, H, W] of all images.
        mean, std: of each channel, in 0..1.
        device: where the images are normalised.
    """

    outcomes: int | None = None  # number of possible views of a sample, all equally likely; None: too many
    steps_at_once = 1

    def __init__(
        self, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], device: torch.device | str
    ) -> None:
        self.shape, self.device = tuple(shape), torch.device(device)
        area = self.shape[2] * self.shape[3]
        # (x / 255 - mean) / std as one multiply-add, over rows long enough to vectorise
        mean, std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.scale = (1 / (255 * std)).float().repeat(area).to(device)
        self.shift = (-mean / std).float().repeat(area).to(device)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Integers that determine a random view of each sample: [n] or [n, ...] int64 on the CPU."""
        raise NotImplementedError

    def pixels(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        """For each step, samples index[step] in views view[step]: [B, H, W, C] uint8 on the device.

        Gets all steps at once, so that it can read images ahead.
        """
        raise NotImplementedError

    def stream(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        """As `pixels`, but normalised: [B, C, H, W] float32, channels_last."""
        index, view, steps, sizes = together(index, view, steps, self.steps_at_once)
        for x, step, some in zip(self.pixels(index, view, steps), steps, sizes, strict=True):
            yield from self.finish(x, view[step]).split(some)

    def finish(self, x: Tensor, view: Tensor) -> Tensor:
        """Pixels [B, ..., H, W, C] uint8 in views `view` [B], ready for the network, in new memory."""
        return self.normalise(x)

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        """A single step: samples `index` [B] in views `view`."""
        return next(iter(self.stream(index, view, [slice(None)])))

    def normalise(self, x: Tensor) -> Tensor:
        """[..., H, W, C] uint8 to [..., C, H, W] float32. The memory order stays, so the result is channels_last."""
        x_rows = x.reshape(-1, self.scale.numel()).float()
        return torch.addcmul(self.shift, x_rows, self.scale).view(x.shape).movedim(-1, -3)


class Views:
    """Several views of every sample, made from those of `augment`. A subclass implements `stream`.

    Replaces `augment` in `Batches`. Raises ValueError if `augment` gives several views itself.
    """

    outcomes: int | None = None  # as in Augment

    def __init__(self, augment: Augment) -> None:
        if not isinstance(augment, Augment):
            raise ValueError(f"{type(self).__name__} needs single images, {type(augment).__name__} gives views")
        self.augment = augment

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Integers that determine all views of a sample: [n, ...] int64 on the CPU."""
        return self.augment.draw(n, generator)

    def stream(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        """For each step, samples index[step] in views view[step]: [B, V, C, H, W] float32, channels_last."""
        raise NotImplementedError

    __call__ = Augment.__call__


class InMemory(Augment):
    """Random crop after zero padding, and random flip, as torchvision computes them image by image.

    Holds N (H + 2 padding) (W + 2 padding) C bytes on `device`.

    Args:
        images: [N, C, H, W] uint8.
        mean, std: of each channel, in 0..1.
        padding: pixels on each side.
        flip: whether to flip at random.
        device: where the images live.
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
        # Row i of this view is the crop whose upper left corner is pixel i of all images' pixels. So one index_select
        # crops a batch; on a CPU it takes half the time of indexing by (image, dy, dx).
        last = (n - 1) * high * wide + (side - 1) * (wide + 1)
        self.crops = padded.as_strided((last + 1, h, w * c), (c, wide * c, 1))
        self.area = high * wide
        self.flip = flip
        corner = (torch.arange(side)[:, None] * wide + torch.arange(side)).flatten()
        self.corner = (corner.repeat_interleave(2) if flip else corner).to(device)  # [outcomes]
        self.outcomes = len(self.corner)
        self.steps_at_once = 8 if self.device.type == "cuda" else 1  # small batches make a GPU wait for launches

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n] int64 on the CPU: a view for each sample, all equally likely.

        A view is (dy * (2 padding + 1) + dx) * 2 + flip, where (dy, dx) is the crop's upper left corner in the padded
        image. Without flips it is dy * (2 padding + 1) + dx.
        """
        return torch.randint(self.outcomes, (n,), generator=generator)

    def pixels(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        index, view = index.to(self.device), view.to(self.device)  # all steps at once, so that none waits
        return (self.crop(index[step], view[step]) for step in steps)

    def crop(self, index: Tensor, view: Tensor) -> Tensor:
        """Samples `index` [B] in views `view` [B], both on the device: [B, H, W, C] uint8."""
        _, c, h, w = self.shape
        x = self.crops.index_select(0, torch.add(self.corner[view], index, alpha=self.area)).view(-1, h, w, c)
        return torch.where((view & 1).bool()[:, None, None, None], x.flip(2), x) if self.flip else x
