"""Holes in images: torchvision's rectangles, at torchvision's places."""

import math

import pytest
import torch
from torchvision.transforms import v2

from dataset.erasing import Cutout, RandomErasing, erase

SIZES = [(32, 32), (8, 8), (20, 29)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [Cutout, lambda size: RandomErasing(0.7, size)])
def test_erased_as_by_torchvision(kind, size):
    torch.manual_seed(0)
    images = torch.randn(100, 2, 3, *size).permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    box = kind(size).draw(100, torch.Generator().manual_seed(0))
    found = erase(images.clone(), box)
    assert found.stride() == images.stride()
    for image, ours, (top, left, height, width) in zip(images, found, box.tolist(), strict=True):
        bottom, right, top, left = top + height, left + width, max(top, 0), max(left, 0)
        hole = (top, left, min(bottom, size[0]) - top, min(right, size[1]) - left)
        assert torch.equal(ours, v2.functional.erase(image, *hole, torch.zeros(1, 1, 1)))
        assert hole[2:] == (0, 0) or (ours == 0).any()


@pytest.mark.parametrize("size", SIZES)
def test_holes_of_cutout(size):
    """A square of half the shorter side, whose centre is any pixel with the same probability."""
    n, side = 200 * math.prod(size), min(size) // 2
    box = Cutout(size).draw(n, torch.Generator().manual_seed(0))
    assert (box[:, 2:] == side).all()
    centre = (box[:, :2] + side // 2) @ torch.tensor([size[1], 1])
    count = centre.bincount(minlength=math.prod(size))
    assert len(count) == math.prod(size)
    assert abs(((count - 200.0) ** 2 / 200).sum() - len(count)) < 4.5 * (2 * len(count)) ** 0.5


@pytest.mark.parametrize("size", [*SIZES, (8, 64)])
def test_rectangles_are_drawn_as_torchvision_draws_them(size):
    n, p = 4000, 0.4
    box = RandomErasing(p, size).draw(n, torch.Generator().manual_seed(0))
    assert torch.equal(box, RandomErasing(p, size).draw(n, torch.Generator().manual_seed(0)))
    assert not RandomErasing(0.0, size).draw(n, torch.Generator()).any()
    done = (box[:, 2:] > 0).all(1)
    torch.manual_seed(0)
    transform, image = v2.RandomErasing(p, value=0), torch.empty(3, *size)
    theirs = [transform.make_params([image]) for _ in range(n // 2)]
    theirs = torch.tensor([[d["i"], d["j"], d["h"], d["w"]] for d in theirs if d["v"] is not None and d["h"] * d["w"]])
    expected = p * len(theirs) / (n // 2)
    assert abs(done.double().mean() - expected) < 4.5 * (p * (1 - p) / n) ** 0.5 + 0.01
    ours = box[done]
    assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= torch.tensor(size)).all()
    for a, b in zip(ours.double().T, theirs.double().T, strict=True):
        assert abs(a.mean() - b.mean()) < 4.5 * (a.var() / len(a) + b.var() / len(b)) ** 0.5
        assert abs(a.std() - b.std()) < 0.1 * b.std() + 0.05
