"""Policies on batches give the pixels that torchvision's operations give for PIL images one by one."""

import functools

import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import autoaugment as published
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

import dataset
from dataset.operations import Operation, Operations, Reach, operation
from dataset.policies import (
    SIGNED,
    SUB_POLICIES,
    UNSIGNED,
    AutoAugment,
    RandAugment,
    TrivialAugmentWide,
    WeakAndStrong,
)

CPU = torch.device("cpu")
NAMES = (*SIGNED, *UNSIGNED, "Identity", "Invert")
CIFAR10 = published.AutoAugment(published.AutoAugmentPolicy.CIFAR10)
SIZES = [(32, 32), (8, 8), (64, 64), (20, 29)]
V2 = v2.AutoAugment()
# policy, torchvision's, how many strengths, and which are in use
POLICIES = {
    "autoaugment": (AutoAugment, CIFAR10, 10, range(10)),
    "randaugment": (RandAugment, published.RandAugment(), 31, [9]),
    "randaugment10": (functools.partial(RandAugment, magnitude=10), published.RandAugment(2, 10), 31, [10]),
    "trivialaugment": (TrivialAugmentWide, published.TrivialAugmentWide(), 31, range(31)),
}
REACHES = {
    "autoaugment": Reach(10),
    "randaugment": Reach(31),
    "trivialaugment": Reach(31, shear=0.99, pixels=32.0, degrees=135.0, blend=0.99, bits=(8, 2)),
}


def some_images(height: int = 32, width: int = 32) -> torch.Tensor:
    """[12, H, W, 3]: noise, dark and flat noise, ramps, and images of one or two values."""
    torch.manual_seed(0)
    noise = torch.randint(256, (4, height, width, 3))
    ramp = torch.arange(height)[:, None, None] * 5 + torch.arange(width)[:, None] * 2 + torch.arange(3)
    flat = torch.full((height, width, 3), 77)
    dot = flat.clone()
    dot[height // 2, width // 2] = 78
    photo = (noise[:2].float().cumsum(1).cumsum(2) / 400).sin() * 127 + 128
    images = [*noise, noise[0] // 4, noise[1] // 8 + 200, ramp, flat, dot, 255 - ramp // 2, *photo.long()]
    return torch.stack(images).to(torch.uint8)


def in_memory(images: torch.Tensor) -> dataset.InMemory:
    return dataset.InMemory(images.permute(0, 3, 1, 2), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def of_pil(image: torch.Tensor, change) -> torch.Tensor:
    return pil_to_tensor(change(Image.fromarray(image.numpy()))).permute(1, 2, 0)


def by_torchvision(name: str, strength: float, between: v2.InterpolationMode = v2.InterpolationMode.NEAREST):
    """The operation on PIL images, of torchvision.transforms.v2."""
    strength = strength / 255 if name == "Solarize" else strength
    return lambda pil: V2._apply_image_or_video_transform(pil, name, strength, between, {Image.Image: None})


def space(policy: str, shape: tuple[int, int]) -> dict[str, tuple[torch.Tensor, bool]]:
    """Of each operation of torchvision's, strengths and whether they have a sign."""
    _, theirs, bins, _ = POLICIES[policy]
    return theirs._augmentation_space(bins, *[] if policy == "trivialaugment" else [shape])


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("policy", REACHES)
def test_strengths_are_torchvisions(policy, shape):
    for name, (theirs, signed) in space(policy, shape).items():
        assert signed == (name in SIGNED) and (name in NAMES)
        if theirs.dim():
            assert REACHES[policy].strengths(name, *shape) == theirs.tolist()


@pytest.mark.parametrize("policy, shape", [*((p, SIZES[0]) for p in REACHES), *(("randaugment", s) for s in SIZES[1:])])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("between", ["NEAREST", "BILINEAR"])
def test_operations_equal_torchvisions(between, policy, name, shape):
    """Every strength in both directions, in one batch."""
    images = some_images(*shape)
    strengths = REACHES[policy].strengths(name, *shape)
    strengths += [-strength for strength in strengths] if name in SIGNED else []
    batch = Operations(
        [Operation(), *(operation(name, strength, *shape) for strength in strengths)], "cpu", between == "BILINEAR"
    )
    rows = torch.arange(len(strengths) + 1).repeat_interleave(len(images))
    images = images.repeat(len(strengths) + 1, 1, 1, 1)
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    images, rows = images[shuffled], rows[shuffled]
    for image, row, ours in zip(images, rows.tolist(), batch(images, rows), strict=True):
        theirs = (
            of_pil(image, by_torchvision(name, strengths[row - 1], v2.InterpolationMode[between])) if row else image
        )
        assert torch.equal(ours, theirs), strengths[row - 1]


def test_autocontrast_of_every_range():
    """The brightest value becomes 255, or 254 where PIL's rounding makes it so."""
    values = torch.arange(256).view(16, 16, 1).expand(-1, -1, 3)
    images = torch.stack([values.clamp(low, high) for high in range(1, 256) for low in (0, high // 2)]).to(torch.uint8)
    found = Operations([operation("AutoContrast", 0, 16, 16)], "cpu")(images, torch.zeros(510, dtype=torch.int64))
    for image, ours in zip(images, found, strict=True):
        assert torch.equal(ours, of_pil(image, ImageOps.autocontrast))


def test_the_policy_is_torchvisions():
    theirs = CIFAR10.policies
    assert [[(name, p) for name, p, _ in both] for both in SUB_POLICIES] == [
        [(name, p) for name, p, _ in both] for both in theirs
    ]
    for ours, other in zip(sum(SUB_POLICIES, []), [o for both in theirs for o in both], strict=True):
        assert other[2] in (None, ours[2])


def test_every_view_of_autoaugment_equals_torchvisions(monkeypatch):
    """All 25 sub-policies in all outcomes, in one batch: each sample has operations of its own."""
    images = some_images()
    augment = in_memory(images)
    views = WeakAndStrong(augment, AutoAugment)
    codes = torch.arange(400)
    bits = torch.stack([codes % 16 >> i & 1 for i in range(4)], 1)  # done, negative, twice
    rows = bits[:, ::2] * (1 + 4 * (codes // 16).unsqueeze(1) + torch.tensor([0, 2]) + bits[:, 1::2])
    index, view = codes % len(images), codes % 162
    found = views(index, torch.cat([view.unsqueeze(1), rows], 1))
    assert found.shape == (400, 2, 3, 32, 32)
    flat = found.flatten(0, 1)
    assert flat.data_ptr() == found.data_ptr() and flat.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found[:, 0], augment(index, view))
    crops = augment.crop(index, view)
    for code, crop, ours in zip(codes.tolist(), crops, found[:, 1], strict=True):
        never = torch.tensor([2.0 - 3.0 * done for done in bits[code, ::2].tolist()])  # beyond all probabilities
        drawn = (code // 16, never, 1 - bits[code, 1::2])  # there 0 is the negative sign
        monkeypatch.setattr(published.AutoAugment, "get_params", staticmethod(lambda n, drawn=drawn: drawn))
        assert torch.equal(ours, augment.normalise(of_pil(crop, CIFAR10)[None])[0]), code


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("name", ["randaugment", "randaugment10", "trivialaugment"])
def test_draws_of_uniform_policies_equal_torchvisions(name, shape):
    """Rows are operations of torchvision's space, each at its strengths and signs; a sample goes through its rows."""
    build, _, _, levels = POLICIES[name]
    policy, images = build(shape, CPU), some_images(*shape)
    expected = []
    for operation_name, (strengths, signed) in space(name, shape).items():
        for strength in strengths[list(levels)].tolist() if strengths.dim() else [0.0] * len(levels):
            expected += [(operation_name, strength), (operation_name, -strength if signed else strength)]
    assert len(policy.operations) == len(expected)
    drawn = policy.draw(60, torch.Generator().manual_seed(0))
    index = torch.arange(60) % len(images)
    for image, rows, ours in zip(images[index], drawn.tolist(), policy(images[index], drawn), strict=True):
        for row in rows:
            image = of_pil(image, by_torchvision(*expected[row]))
        assert torch.equal(ours, image), rows


def test_draws_of_autoaugment_follow_the_probabilities():
    policy, n = AutoAugment((32, 32), CPU), 200_000
    drawn = policy.draw(n, torch.Generator().manual_seed(0))
    assert drawn.shape == (n, 2) and drawn.dtype == torch.int64
    assert torch.equal(drawn, policy.draw(n, torch.Generator().manual_seed(0)))
    both = (drawn > 0).all(1)
    assert torch.equal((drawn[both, 0] - 1) // 4, (drawn[both, 1] - 1) // 4)
    for i, sub_policy in enumerate(SUB_POLICIES):
        for j, (_, p, _) in enumerate(sub_policy):
            for negative in range(2):
                share, expected = (drawn[:, j] == 1 + 4 * i + 2 * j + negative).double().mean().item(), p / 50
                assert abs(share - expected) <= 4.5 * (expected * (1 - expected) / n) ** 0.5


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_draws_of_uniform_policies_are_uniform(name):
    policy = POLICIES[name][0]((32, 32), CPU)
    rows = len(policy.operations)
    drawn = policy.draw(500 * rows, torch.Generator().manual_seed(0))
    assert drawn.shape[1] == {"randaugment": 2, "trivialaugment": 1}[name]
    for column in drawn.unbind(1):
        chi = ((column.bincount(minlength=rows) - 500.0) ** 2 / 500).sum()
        assert abs(chi - (rows - 1)) < 4.5 * (2 * rows) ** 0.5
    if name == "randaugment":  # independent of each other
        count = (drawn @ torch.tensor([rows, 1])).bincount(minlength=rows**2).double()
        expected = len(drawn) / rows**2
        assert abs(((count - expected) ** 2 / expected).sum() - rows**2) < 4.5 * (2 * rows**2) ** 0.5


def test_steps_at_once_change_nothing():
    """As on a GPU; a sample's view is the same in any company."""
    augments = [in_memory(some_images()) for _ in range(2)]
    augments[1].steps_at_once = 3
    one, several = (WeakAndStrong(augment, RandAugment, cutout=True) for augment in augments)
    view = one.draw(12, torch.Generator().manual_seed(3))
    steps = [slice(0, 4), slice(5, 7), slice(4, 5), slice(7, 12)]
    whole = one(torch.arange(12), view)
    for a, b, step in zip(*(v.stream(torch.arange(12), view, steps) for v in (one, several)), steps, strict=True):
        assert torch.equal(a, b) and torch.equal(a, whole[step])
    assert not list(one.stream(torch.arange(12), view, []))


def test_refuses_what_gives_views_itself():
    views = WeakAndStrong(in_memory(some_images()), AutoAugment)
    with pytest.raises(ValueError, match="WeakAndStrong needs single images, WeakAndStrong gives views"):
        WeakAndStrong(views, AutoAugment)


def test_tiny_images():
    """Too small for the 3x3 filter of Sharpness, as PIL treats them."""
    images = some_images(2, 2)
    batch = Operations([operation("Sharpness", 0.9, 2, 2)], "cpu")
    assert torch.equal(batch(images, torch.zeros(len(images), dtype=torch.int64)), images)
