"""AutoAugment for batches gives the pixels that torchvision's gives for PIL images one by one."""

import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import autoaugment as reference
from torchvision.transforms.functional import pil_to_tensor

import dataset
from dataset.autoaugment import SUB_POLICIES, AutoAugment, Operation, Operations, operation

SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
NAMES = (*SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert")
TORCHVISION = reference.AutoAugment(reference.AutoAugmentPolicy.CIFAR10)


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


def of_pil(image: torch.Tensor, change) -> torch.Tensor:
    return pil_to_tensor(change(Image.fromarray(image.numpy()))).permute(1, 2, 0)


@pytest.mark.parametrize("shape", [(32, 32), (20, 29)])
@pytest.mark.parametrize("name", NAMES)
def test_operations_equal_torchvisions(name, shape):
    images = some_images(*shape)
    magnitudes, signed = TORCHVISION._augmentation_space(10, shape)[name]
    assert signed == (name in SIGNED)
    for level in range(10 if magnitudes.dim() else 1):
        magnitude = magnitudes[level].item() if magnitudes.dim() else 0.0
        for sign in (1, -1) if signed else (1,):
            batch = Operations([Operation(), operation(name, level, sign, *shape)], "cpu")
            found = batch(images, torch.ones(len(images), dtype=torch.int64))
            for image, ours in zip(images, found, strict=True):
                theirs = of_pil(
                    image,
                    lambda pil, m=sign * magnitude: reference._apply_op(
                        pil, name, m, reference.InterpolationMode.NEAREST, None
                    ),
                )
                assert torch.equal(ours, theirs), (level, sign)


def test_autocontrast_of_every_range():
    """The brightest value becomes 255, or 254 where PIL's rounding makes it so."""
    values = torch.arange(256).view(16, 16, 1).expand(-1, -1, 3)
    images = torch.stack([values.clamp(low, high) for high in range(1, 256) for low in (0, high // 2)]).to(torch.uint8)
    found = Operations([operation("AutoContrast", 0, 1, 16, 16)], "cpu")(images, torch.zeros(510, dtype=torch.int64))
    for image, ours in zip(images, found, strict=True):
        assert torch.equal(ours, of_pil(image, ImageOps.autocontrast))


def test_the_policy_is_torchvisions():
    theirs = TORCHVISION.policies
    assert [[(name, p) for name, p, _ in both] for both in SUB_POLICIES] == [
        [(name, p) for name, p, _ in both] for both in theirs
    ]
    for ours, other in zip(sum(SUB_POLICIES, []), [o for both in theirs for o in both], strict=True):
        assert other[2] in (None, ours[2])


def test_every_view_equals_torchvisions(monkeypatch):
    """All 25 sub-policies in all outcomes, in one batch: each sample has operations of its own."""
    images = some_images()
    augment = AutoAugment(dataset.InMemory(images.permute(0, 3, 1, 2), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    codes = torch.arange(400)
    index, view = codes % len(images), codes % 162
    found = augment(index, torch.stack([view, codes], 1))
    assert found.shape == (400, 2, 3, 32, 32)
    flat = found.flatten(0, 1)
    assert flat.data_ptr() == found.data_ptr() and flat.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found[:, 0], augment.augment(index, view))
    crops = augment.augment.crop(index, view)
    for code, crop, ours in zip(codes.tolist(), crops, found[:, 1], strict=True):
        bits = [code >> i & 1 for i in range(4)]
        never = [2.0 - 3.0 * done for done in bits[::2]]  # above or below every probability
        drawn = (code // 16, torch.tensor(never), 1 - torch.tensor(bits[1::2]))  # there 0 is the negative sign
        monkeypatch.setattr(reference.AutoAugment, "get_params", staticmethod(lambda n, drawn=drawn: drawn))
        theirs = of_pil(crop, TORCHVISION)
        assert torch.equal(ours, augment.augment.normalise(theirs[None])[0]), code


def test_draws_follow_the_probabilities():
    augment = AutoAugment(dataset.InMemory(some_images().permute(0, 3, 1, 2), (0.5,) * 3, (0.5,) * 3))
    n = 100_000
    view = augment.draw(n, torch.Generator().manual_seed(0))
    assert view.shape == (n, 2) and view.dtype == torch.int64
    assert torch.equal(view, augment.draw(n, torch.Generator().manual_seed(0)))
    policy, bits = view[:, 1] // 16, torch.stack([view[:, 1] >> i & 1 for i in range(4)], 1).double()
    assert (policy.bincount() / n - 1 / 25).abs().max() < 4 * (0.04 * 0.96 / n) ** 0.5
    for i, both in enumerate(SUB_POLICIES):
        for j, (_, p, _) in enumerate(both):
            share = bits[policy == i, 2 * j].mean().item()
            assert share == p if p in (0, 1) else abs(share - p) < 4.5 * (p * (1 - p) / (n / 25)) ** 0.5
    assert (bits[:, 1::2].mean(0) - 0.5).abs().max() < 4 * 0.5 / n**0.5


def test_refuses_what_gives_views_itself():
    augment = AutoAugment(dataset.InMemory(some_images().permute(0, 3, 1, 2), (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(ValueError, match="needs single images, AutoAugment gives views"):
        AutoAugment(augment)


def test_tiny_images():
    """Too small for the 3x3 filter of Sharpness, as PIL treats them."""
    images = some_images(2, 2)
    batch = Operations([operation("Sharpness", 9, 1, 2, 2)], "cpu")
    assert torch.equal(batch(images, torch.zeros(len(images), dtype=torch.int64)), images)
