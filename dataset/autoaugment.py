"""AutoAugment: Learning Augmentation Strategies from Data. Cubuk et al., CVPR 2019. https://arxiv.org/abs/1805.09501

The policy found on CIFAR-10, for a whole batch at a time: every sample has operations of its own, yet nothing waits for
the device, because the operations are three families of which each member is a row of numbers: a lookup table of pixel
values, a blend with a worse image, an affine map. Pixels equal those that torchvision's AutoAugment gives for PIL
images, black where a pixel comes from outside (the paper has grey there).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .augment import Augment, Steps, Views

# The 25 sub-policies of the paper's table 7: operation, probability, strength 0 .. 9, twice.
POLICY = """
Invert 0.1 7        Contrast 0.2 6
Rotate 0.7 2        TranslateX 0.3 9
Sharpness 0.8 1     Sharpness 0.9 3
ShearY 0.5 8        TranslateY 0.7 9
AutoContrast 0.5 8  Equalize 0.9 2
ShearY 0.2 7        Posterize 0.3 7
Color 0.4 3         Brightness 0.6 7
Sharpness 0.3 9     Brightness 0.7 9
Equalize 0.6 5      Equalize 0.5 1
Contrast 0.6 7      Sharpness 0.6 5
Color 0.7 7         TranslateX 0.5 8
Equalize 0.3 7      AutoContrast 0.4 8
TranslateY 0.4 3    Sharpness 0.2 6
Brightness 0.9 6    Color 0.2 8
Solarize 0.5 2      Invert 0.0 3
Equalize 0.2 0      AutoContrast 0.6 0
Equalize 0.2 8      Equalize 0.6 4
Color 0.9 9         Equalize 0.6 6
AutoContrast 0.8 4  Solarize 0.2 8
Brightness 0.1 3    Color 0.7 0
Solarize 0.4 5      AutoContrast 0.9 3
TranslateY 0.9 9    TranslateY 0.7 9
AutoContrast 0.9 2  Solarize 0.8 3
Equalize 0.8 8      Invert 0.1 3
TranslateY 0.7 9    AutoContrast 0.9 1
"""
SUB_POLICIES = [
    [(name, float(p), int(level)) for name, p, level in (words[:3], words[3:])]
    for words in (line.split() for line in POLICY.strip().splitlines())
]

FIXED_TABLE, AUTOCONTRAST, EQUALIZE = range(3)
BLACK, GREY, MEAN_GREY, SMOOTH = range(4)
BLENDS = {"Brightness": BLACK, "Color": GREY, "Contrast": MEAN_GREY, "Sharpness": SMOOTH}


class Operation(NamedTuple):
    """One member of each family; left out, it leaves the image as it is."""

    adaptive: int = FIXED_TABLE  # which lookup table: `table`, or one made from the image
    table: tuple[int, ...] = tuple(range(256))
    worse: int = BLACK  # the image that is blended with ...
    factor: float = 1.0  # ... which has the weight 1 - factor
    affine: tuple[float, ...] = (1, 0, 0, 0, 1, 0)  # a b c d e f: the pixel at x, y comes from ax + by + c, dx + ey + f


def operation(name: str, level: int, sign: int, height: int, width: int) -> Operation:
    """An operation of the paper at strength `level` (0 .. 9); sign (1 or -1) is that of those which have one."""
    share = sign * level / 9
    if name in BLENDS:
        strength = torch.linspace(0, 0.9, 10)[level].item()  # torchvision's rounding, which shows in some pixels
        return Operation(worse=BLENDS[name], factor=1 + sign * strength)
    if name == "ShearX":
        return Operation(affine=(1, 0.3 * share, 0, 0, 1, 0))
    if name == "ShearY":
        return Operation(affine=(1, 0, 0, 0.3 * share, 1, 0))
    if name == "TranslateX":
        return Operation(affine=(1, 0, -int(150 / 331 * width * share), 0, 1, 0))
    if name == "TranslateY":
        return Operation(affine=(1, 0, 0, 0, 1, -int(150 / 331 * height * share)))
    if name == "Rotate":
        cos, sin = math.cos(math.radians(30 * share)), math.sin(math.radians(30 * share))
        x, y = width / 2, height / 2
        return Operation(affine=(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))
    if name == "Invert":
        return Operation(table=tuple(255 - v for v in range(256)))
    if name == "Posterize":
        return Operation(table=tuple(v & -(2 ** round(level * 4 / 9)) for v in range(256)))
    if name == "Solarize":
        return Operation(table=tuple(v if v < 255 * (9 - level) / 9 else 255 - v for v in range(256)))
    return Operation(adaptive={"AutoContrast": AUTOCONTRAST, "Equalize": EQUALIZE}[name])


class Operations:
    """A list of operations as tensors, from which every sample of a batch takes its own row."""

    def __init__(self, operations: list[Operation], device: torch.device | str) -> None:
        a, b, c, d, e, f = torch.tensor([o.affine for o in operations], dtype=torch.float64).unbind(1)
        # PIL's fixed point, at the centres of pixels: 16 bits behind the point, rounded
        centred = torch.stack([a, b, c + a / 2 + b / 2, d, e, f + d / 2 + e / 2], 1)
        self.affine = (centred * 65536 + 0.5).floor().long().to(device)
        self.adaptive = torch.tensor([o.adaptive for o in operations], device=device)
        self.table = torch.tensor([o.table for o in operations], device=device)
        self.worse = torch.tensor([o.worse for o in operations], device=device)
        self.factor = torch.tensor([o.factor for o in operations], dtype=torch.float32, device=device)

    def __call__(self, x: Tensor, row: Tensor) -> Tensor:
        """Images [B, H, W, 3] uint8, each under the operation `row` [B]; uint8 again."""
        return self._move(self._blend(self._look_up(x, row), row), row)

    def _look_up(self, x: Tensor, row: Tensor) -> Tensor:
        b, h, w, c = x.shape
        cells = x.long() + 256 * torch.arange(b * c, device=x.device).view(b, 1, 1, c)  # of a table for each channel
        count = torch.zeros(b * c * 256, dtype=torch.int64, device=x.device)
        count = count.scatter_add_(0, cells.flatten(), torch.ones_like(cells).flatten()).view(b, c, 256)
        value = torch.arange(256, device=x.device)

        low, high = (bound(x, dim=(1, 2)).double().unsqueeze(2) for bound in (torch.amin, torch.amax))
        scale = torch.full_like(high, 255) / (high - low)  # `255 / x` would be rounded twice, and darken some pixels
        stretched = (value * scale + -low * scale).long().clamp(0, 255)
        stretched = torch.where(high > low, stretched, value)

        last = count.gather(2, high.long())  # the brightest pixels do not count
        step = (h * w - last) // 255
        below = count.cumsum(2) - count
        flat = (step // 2 + below) // step.clamp_min(1)
        flat = torch.where(step > 0, flat.clamp_max(255), value)

        kind = self.adaptive[row].view(b, 1, 1)
        table = torch.where(kind == AUTOCONTRAST, stretched, self.table[row].unsqueeze(1))
        table = torch.where(kind == EQUALIZE, flat, table).to(torch.uint8)
        return table.flatten()[cells]

    def _blend(self, x: Tensor, row: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        kind, x = self.worse[row].view(-1, 1, 1, 1), x.int()
        grey = (19595 * x[..., :1] + 38470 * x[..., 1:2] + 7471 * x[..., 2:] + 32768) >> 16
        mean = (2 * grey.sum((1, 2, 3), keepdim=True) + h * w) // (2 * h * w)  # rounded
        smooth = x.clone()
        if h > 2 and w > 2:
            around = sum(x[:, i : i + h - 2, j : j + w - 2] for i in range(3) for j in range(3))
            smooth[:, 1:-1, 1:-1] = (2 * (around + 4 * x[:, 1:-1, 1:-1]) + 13) // 26  # thirteenths, rounded
        worse = torch.where(kind == GREY, grey, 0)
        worse = torch.where(kind == MEAN_GREY, mean, worse)
        worse = torch.where(kind == SMOOTH, smooth, worse)
        blended = worse + self.factor[row].view(-1, 1, 1, 1) * (x - worse)
        return blended.clamp(0, 255).to(torch.uint8)

    def _move(self, x: Tensor, row: Tensor) -> Tensor:
        n, h, w, channels = x.shape
        a, b, c, d, e, f = self.affine[row].view(-1, 6, 1, 1).unbind(1)
        to_x, to_y = torch.arange(w, device=x.device), torch.arange(h, device=x.device).unsqueeze(1)
        from_x, from_y = (a * to_x + b * to_y + c) >> 16, (d * to_x + e * to_y + f) >> 16
        inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
        place = torch.where(inside, from_y * w + from_x, 0).view(n, h * w, 1).expand(-1, -1, channels)
        moved = x.view(n, h * w, channels).gather(1, place).view(x.shape)
        return torch.where(inside.unsqueeze(3), moved, 0)


class AutoAugment(Views):
    """Two views of every sample: as `augment` gives it, and the same crop and flip under a random sub-policy."""

    def __init__(self, augment: Augment) -> None:
        super().__init__(augment)
        height, width = augment.shape[2:]
        self.probability = torch.tensor([[p for _, p, _ in both] for both in SUB_POLICIES])
        rows = [Operation()]
        both_rows = []  # of each sub-policy and outcome, the rows of its two operations
        for both in SUB_POLICIES:
            for outcome in range(16):
                pair = []
                for i, (name, _, level) in enumerate(both):
                    done, negative = outcome >> 2 * i & 1, outcome >> 2 * i & 2
                    pair.append(len(rows) if done else 0)
                    rows += [operation(name, level, -1 if negative else 1, height, width)] if done else []
                both_rows.append(pair)
        self.rows = torch.tensor(both_rows, device=augment.device)
        self.operations = Operations(rows, augment.device)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, 2] int64 on the CPU: the view of `augment`, and 16 * sub-policy + outcome.

        Bits of the outcome: first operation done, its sign negative, second operation done, its sign negative.
        """
        view = self.augment.draw(n, generator)
        policy = torch.randint(len(SUB_POLICIES), (n,), generator=generator)
        done = torch.rand(n, 2, generator=generator) < self.probability[policy]
        negative = torch.randint(2, (n, 2), generator=generator)
        outcome = (done + 2 * negative) @ torch.tensor([1, 4])
        return torch.stack([view, 16 * policy + outcome], 1)

    def stream(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        plain = self.augment.pixels(index, view[:, 0], steps)
        rows = self.rows[view[:, 1].to(self.rows.device)]
        for x, step in zip(plain, steps, strict=True):
            first, second = rows[step].unbind(1)
            changed = self.operations(self.operations(x, first), second)
            yield self.augment.normalise(torch.stack([x, changed], 1))
