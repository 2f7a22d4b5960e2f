"""AutoAugment's operations on whole batches; each sample has its own operation.

Pixels equal those of torchvision.transforms for PIL images (black outside). torchvision's v2 rounds
the threshold of some Solarize up, and so inverts one value less. Nothing waits for the device: operations are drawn on
the host, which therefore knows what a batch needs.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .augment import upload

IDENTITY, TABLE, AUTOCONTRAST, EQUALIZE, BRIGHTNESS, COLOR, CONTRAST, SHARPNESS, AFFINE = range(9)
BLENDS = {"Brightness": BRIGHTNESS, "Color": COLOR, "Contrast": CONTRAST, "Sharpness": SHARPNESS}
WITHOUT_STRENGTH = {"Identity": IDENTITY, "AutoContrast": AUTOCONTRAST, "Equalize": EQUALIZE}


class Operation(NamedTuple):
    """An operation's parameters. Each kind reads its own."""

    kind: int = IDENTITY
    table: tuple[int, ...] = tuple(range(256))  # new pixel values
    factor: float = 1.0  # weight of the image in a blend with a degraded one
    affine: tuple[float, ...] = (1, 0, 0, 0, 1, 0)  # a b c d e f: the pixel at x, y comes from ax + by + c, dx + ey + f


def operation(name: str, strength: float, height: int, width: int) -> Operation:
    """An operation at a strength of `Reach.strengths`; a negative strength reverses its direction."""
    if name in WITHOUT_STRENGTH:
        return Operation(WITHOUT_STRENGTH[name])
    if name in BLENDS:
        return Operation(BLENDS[name], factor=1 + strength)
    if name == "ShearX":
        return Operation(AFFINE, affine=(1, strength, 0, 0, 1, 0))
    if name == "ShearY":
        return Operation(AFFINE, affine=(1, 0, 0, strength, 1, 0))
    if name == "TranslateX":
        return Operation(AFFINE, affine=(1, 0, -int(strength), 0, 1, 0))
    if name == "TranslateY":
        return Operation(AFFINE, affine=(1, 0, 0, 0, 1, -int(strength)))
    if name == "Rotate":
        cos, sin = (round(f(math.radians(strength % 360)), 15) for f in (math.cos, math.sin))  # as PIL rounds them
        x, y = width / 2, height / 2
        return Operation(AFFINE, affine=(cos, -sin, cos * -x + sin * y + x, sin, cos, -sin * x + cos * -y + y))
    if name == "Posterize":
        return Operation(TABLE, tuple(v & -(2 ** (8 - int(strength))) for v in range(256)))
    above = {"Invert": 0.0, "Solarize": strength}[name]
    return Operation(TABLE, tuple(v if v < above else 255 - v for v in range(256)))


class Reach(NamedTuple):
    """How strong the operations of a policy get, in `bins` equal steps."""

    bins: int
    shear: float = 0.3
    across: float = 150 / 331  # of the image's side
    pixels: float | None = None  # overrides `across`
    degrees: float = 30.0
    blend: float = 0.9
    bits: tuple[int, int] = (8, 4)

    def strengths(self, name: str, height: int, width: int) -> list[float]:
        """All strengths of an operation, weakest first, rounded as in torchvision."""
        if name == "Posterize":  # bits that stay
            most, least = self.bits
            return (most - torch.arange(self.bins) / ((self.bins - 1) / (most - least))).round().tolist()
        if name == "Solarize":  # the first value that is inverted
            return torch.linspace(255, 0, self.bins).tolist()
        ends = {"ShearX": self.shear, "ShearY": self.shear, "Rotate": self.degrees, **dict.fromkeys(BLENDS, self.blend)}
        ends["TranslateX"], ends["TranslateY"] = (self.pixels or self.across * side for side in (width, height))
        return torch.linspace(0, ends.get(name, 0), self.bins).tolist()


class Operations:
    """A table of operations, from which each sample of a batch takes one row.

    Args:
        operations: the rows.
        device: of the images.
        bilinear: interpolate in shears, shifts and rotations; else take the nearest pixel.
    """

    def __init__(self, operations: list[Operation], device: torch.device | str, bilinear: bool = False) -> None:
        real = torch.tensor([o.affine for o in operations], dtype=torch.float64)
        a, b, c, d, e, f = real.unbind(1)
        # PIL's fixed point, at pixel centres: 16 fractional bits, rounded
        centred = torch.stack([a, b, c + a / 2 + b / 2, d, e, f + d / 2 + e / 2], 1)
        self.affine = (real if bilinear else (centred * 65536 + 0.5).floor().long()).to(device)
        self.move = move_bilinear if bilinear else move
        self.table = torch.tensor([o.table for o in operations], dtype=torch.uint8).to(device)
        self.factor = torch.tensor([o.factor for o in operations], dtype=torch.float32).to(device)
        self.kind = torch.tensor([o.kind for o in operations])  # on the CPU

    def __len__(self) -> int:
        return len(self.kind)

    def __call__(self, x: Tensor, row: Tensor) -> Tensor:
        """Applies operation row[i] to image i: [B, H, W, 3] uint8 to the same. row: [B], on the CPU."""
        kind = self.kind[row]
        order = kind.argsort(stable=True)
        sizes = kind.bincount(minlength=AFFINE + 1).tolist()
        places, rows = upload(torch.stack([order, row[order]]), x.device)
        x = x.clone()
        for kind, (at, row) in enumerate(zip(places.split(sizes), rows.split(sizes), strict=True)):
            if len(at) and kind != IDENTITY:
                x.index_copy_(0, at, self.change(kind, x[at], row))
        return x

    def change(self, kind: int, x: Tensor, row: Tensor) -> Tensor:
        """Applies operations of one kind, `row` [B] on the device, to images [B, H, W, 3] uint8."""
        if kind == TABLE:
            return look_up(x, self.table[row].unsqueeze(1))
        if kind == AFFINE:
            return self.move(x, self.affine[row])
        if kind in WORSE:
            x = x.int()
            worse = WORSE[kind](x)
            blended = worse + self.factor[row].view(-1, 1, 1, 1) * (x - worse)
            return blended.clamp(0, 255).to(torch.uint8)
        return autocontrast(x) if kind == AUTOCONTRAST else equalize(x)


def cells(x: Tensor) -> Tensor:
    """Index of each value of [B, H, W, C] uint8 in a table of 256 values for each channel of each image."""
    b, _, _, c = x.shape
    return x.long() + 256 * torch.arange(b * c, device=x.device).view(b, 1, 1, c)


def look_up(x: Tensor, table: Tensor) -> Tensor:
    """Replaces values by those of `table`, [B, C or 1, 256] uint8."""
    return table.expand(-1, x.shape[3], -1).flatten()[cells(x)]


def autocontrast(x: Tensor) -> Tensor:
    low, high = (bound(x, dim=(1, 2), keepdim=True).double() for bound in (torch.amin, torch.amax))
    scale = torch.full_like(high, 255) / (high - low)  # `255 / x` rounds twice, which darkens some pixels
    stretched = (x * scale + -low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, x)


def equalize(x: Tensor) -> Tensor:
    b, h, w, c = x.shape
    places = cells(x).flatten()
    count = torch.zeros(b * c * 256, dtype=torch.int64, device=x.device)
    count = count.scatter_add_(0, places, torch.ones_like(places)).view(b, c, 256)
    last = count.gather(2, x.amax(dim=(1, 2)).long().unsqueeze(2))  # PIL does not count the brightest pixels
    step = (h * w - last) // 255
    below = count.cumsum(2) - count
    flat = ((step // 2 + below) // step.clamp_min(1)).clamp_max(255)
    return look_up(x, torch.where(step > 0, flat, torch.arange(256, device=x.device)).to(torch.uint8))


def black(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def grey(x: Tensor) -> Tensor:
    return (19595 * x[..., :1] + 38470 * x[..., 1:2] + 7471 * x[..., 2:] + 32768) >> 16


def mean_grey(x: Tensor) -> Tensor:
    area = x.shape[1] * x.shape[2]
    return (2 * grey(x).sum((1, 2, 3), keepdim=True) + area) // (2 * area)  # rounded


def smooth(x: Tensor) -> Tensor:
    (h, w), found = x.shape[1:3], x.clone()
    if h > 2 and w > 2:
        around = sum(x[:, i : i + h - 2, j : j + w - 2] for i in range(3) for j in range(3))
        found[:, 1:-1, 1:-1] = (2 * (around + 4 * x[:, 1:-1, 1:-1]) + 13) // 26  # thirteenths, rounded
    return found


WORSE = {BRIGHTNESS: black, COLOR: grey, CONTRAST: mean_grey, SHARPNESS: smooth}  # each [B, H, W, 3] int32


def move(x: Tensor, affine: Tensor) -> Tensor:
    """Applies affine transforms [B, 6], in PIL's fixed point."""
    n, h, w, channels = x.shape
    a, b, c, d, e, f = affine.view(-1, 6, 1, 1).unbind(1)
    to_x, to_y = torch.arange(w, device=x.device), torch.arange(h, device=x.device).unsqueeze(1)
    from_x, from_y = (a * to_x + b * to_y + c) >> 16, (d * to_x + e * to_y + f) >> 16
    inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
    place = torch.where(inside, from_y * w + from_x, 0).view(n, h * w, 1).expand(-1, -1, channels)
    moved = x.view(n, h * w, channels).gather(1, place).view(x.shape)
    return torch.where(inside.unsqueeze(3), moved, 0)


def move_bilinear(x: Tensor, affine: Tensor) -> Tensor:
    """affine: [B, 6] float64; in PIL's order of sums, because its rounding down shows the last bit."""
    n, h, w, channels = x.shape
    a, b, c, d, e, f = affine.view(-1, 6, 1, 1).unbind(1)
    to_x = torch.arange(w, device=x.device, dtype=torch.float64) + 0.5
    to_y = torch.arange(h, device=x.device, dtype=torch.float64).unsqueeze(1) + 0.5
    from_x, from_y = a * to_x + b * to_y + c, d * to_x + e * to_y + f
    inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
    left, top = (from_x - 0.5).floor(), (from_y - 0.5).floor()
    share_x, share_y = (from_x - 0.5 - left).view(n, -1, 1), (from_y - 0.5 - top).view(n, -1, 1)
    columns = [(left + i).clamp(0, w - 1).long() for i in (0, 1)]
    flat = x.view(n, h * w, channels)

    def row(y: Tensor) -> Tensor:
        start = y.clamp(0, h - 1).long() * w
        one, two = (flat.gather(1, (start + column).view(n, -1, 1).expand(-1, -1, channels)) for column in columns)
        return one + (two.double() - one) * share_x

    upper = row(top)
    found = (upper + (row(top + 1) - upper) * share_y).to(torch.uint8).view(x.shape)
    return torch.where(inside.unsqueeze(3), found, 0)
