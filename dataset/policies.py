"""Policies of random operations: which operation each sample of a batch gets, at which strength."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .augment import Augment, Steps, Views, columns, parted, together, upload
from .erasing import Cutout, RandomErasing, erase
from .operations import Operations, Reach, operation

SIGNED = "ShearX ShearY TranslateX TranslateY Rotate Brightness Color Contrast Sharpness".split()
UNSIGNED = "Posterize Solarize AutoContrast Equalize".split()

# The 25 sub-policies of the paper's table 7: twice operation, probability, strength 0 .. 9
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


class Policy:
    """Applies random operations one after the other. A subclass lists them, as (name, strength), and draws among them.

    Args:
        operations: names and strengths.
        size: height and width of the images.
        device: of the images.
    """

    bilinear = False  # True: interpolate in shears, shifts and rotations; else take the nearest pixel
    columns: int  # numbers drawn for each sample

    def __init__(self, operations: Sequence[tuple[str, float]], size: Sequence[int], device: torch.device) -> None:
        self.operations = Operations([operation(*each, *size) for each in operations], device, self.bilinear)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Integers that determine a sample's operations: [n, columns] int64 on the CPU."""
        raise NotImplementedError

    def __call__(self, x: Tensor, drawn: Tensor) -> Tensor:
        """Applies what was `drawn` [B, columns], on the CPU, to images [B, H, W, 3] uint8."""
        for row in drawn.unbind(1):
            x = self.operations(x, row)
        return x


class AutoAugment(Policy):
    """AutoAugment: Learning Augmentation Strategies from Data. Cubuk et al., CVPR 2019.
    https://arxiv.org/abs/1805.09501

    The CIFAR-10 policy as in torchvision: black where the paper has grey.
    """

    columns = 2

    def __init__(self, size: Sequence[int], device: torch.device) -> None:
        reach, found = Reach(10), [("Identity", 0.0)]
        for name, _, level in (one for both in SUB_POLICIES for one in both):
            strength = reach.strengths(name, *size)[level]
            found += [(name, strength), (name, -strength if name in SIGNED else strength)]
        super().__init__(found, size, device)
        self.probability = torch.tensor([[p for _, p, _ in both] for both in SUB_POLICIES])

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Rows: 0, or 1 + 4 * sub-policy + 2 * place in it + (1 if its sign is negative)."""
        chosen = torch.randint(len(SUB_POLICIES), (n,), generator=generator)
        done = torch.rand(n, 2, generator=generator) < self.probability[chosen]
        negative = torch.randint(2, (n, 2), generator=generator)
        return done * (1 + 4 * chosen.unsqueeze(1) + torch.tensor([0, 2]) + negative)


class Uniform(Policy):
    """Draws operations with equal probability, at one of several strengths, with a random sign.

    Args:
        reach: strengths of the operations.
        levels: indices of the strengths to draw from.
        size: height and width of the images.
        device: of the images.
    """

    def __init__(self, reach: Reach, levels: Sequence[int], size: Sequence[int], device: torch.device) -> None:
        found = []
        for name in ("Identity", *SIGNED, *UNSIGNED):
            strengths = reach.strengths(name, *size)
            for level in levels:
                strength = strengths[level]
                found += [(name, strength), (name, -strength if name in SIGNED else strength)]
        super().__init__(found, size, device)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randint(len(self.operations), (n, self.columns), generator=generator)


class RandAugment(Uniform):
    """RandAugment: Practical automated data augmentation with a reduced search space. Cubuk et al., NeurIPS 2020.
    https://arxiv.org/abs/1909.13719

    As in torchvision: num_ops operations at a `magnitude` of 0 to 30.
    """

    def __init__(self, size: Sequence[int], device: torch.device, *, num_ops: int = 2, magnitude: int = 9) -> None:
        self.columns = num_ops
        super().__init__(Reach(31), [magnitude], size, device)


class TrivialAugmentWide(Uniform):
    """TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation. Mueller, Hutter, ICCV 2021.
    https://arxiv.org/abs/2103.10158

    One operation at one of 31 strengths. Images of any size move by up to 32 pixels.
    """

    columns = 1

    def __init__(self, size: Sequence[int], device: torch.device) -> None:
        reach = Reach(31, shear=0.99, pixels=32.0, degrees=135.0, blend=0.99, bits=(8, 2))
        super().__init__(reach, range(31), size, device)


class AugMix(Uniform):
    """AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty. Hendrycks et al., ICLR 2020.
    https://arxiv.org/abs/1912.02781

    Averages the image with three chains of one to three operations, with random weights, as torchvision does. Does not
    include the paper's loss on three such images.
    """

    bilinear = True
    chains, depth, severity = 3, 3, 3
    columns = chains * depth + 1 + chains

    def __init__(self, size: Sequence[int], device: torch.device) -> None:
        super().__init__(Reach(10, across=1 / 3, bits=(4, 0)), range(self.severity), size, device)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Each chain's operations, 0 beyond its end; then the float64 bits of the weights of the image and of each
        chain.
        """
        length = torch.randint(1, self.depth + 1, (n, self.chains, 1), generator=generator)
        first = 2 * self.severity  # the rows before are Identity's
        rows = torch.randint(first, len(self.operations), (n, self.chains, self.depth), generator=generator)
        rows = rows * (torch.arange(self.depth) < length)
        own = torch.rand(n, 1, generator=generator, dtype=torch.float64)  # Beta(1, 1)
        chain = torch.empty(n, self.chains, dtype=torch.float64).exponential_(generator=generator)
        chain = (1 - own) * chain / chain.sum(1, keepdim=True)  # Dirichlet(1, 1, 1)
        return columns(rows, own.view(torch.int64), chain.view(torch.int64))

    def __call__(self, x: Tensor, drawn: Tensor) -> Tensor:
        rows, weights = drawn.split([self.chains * self.depth, 1 + self.chains], 1)
        chains = super().__call__(x.repeat_interleave(self.chains, 0), rows.reshape(-1, self.depth))
        weights = upload(weights.contiguous().view(torch.float64).float(), x.device).view(len(x), -1, 1, 1, 1)
        mixed = weights[:, 0] * x
        for i, chain in enumerate(chains.unflatten(0, (-1, self.chains)).unbind(1), 1):
            mixed.add_(weights[:, i] * chain)
        return mixed.to(torch.uint8)


POLICIES: dict[str, Callable[[Sequence[int], torch.device], Policy]] = {
    "trivialaugment": TrivialAugmentWide,
    "randaugment": RandAugment,
    "autoaugment": AutoAugment,
    "augmix": AugMix,
}


class Augmented(Augment):
    """Views of `augment` with a policy (a name of `POLICIES`) and, with probability `reprob`, an erased rectangle."""

    def __init__(self, augment: Augment, policy: str | None, reprob: float) -> None:
        self.augment, self.steps_at_once = augment, augment.steps_at_once
        self.shape, self.device, self.scale, self.shift = augment.shape, augment.device, augment.scale, augment.shift
        size = self.shape[2:]
        self.policy = POLICIES[policy](size, self.device) if policy else None
        self.hole = RandomErasing(reprob, size) if reprob else None

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, columns] int64 on the CPU: the draws of `augment`, of the policy, and of the rectangle."""
        return columns(*[each.draw(n, generator) for each in (self.augment, self.policy, self.hole) if each])

    def parts(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return parted(view, self.policy.columns if self.policy else 0, 4 if self.hole else 0)

    def pixels(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        view, drawn, _ = self.parts(view)
        for x, step in zip(self.augment.pixels(index, view, steps), steps, strict=True):
            yield self.policy(x, drawn[step]) if self.policy else x

    def finish(self, x: Tensor, view: Tensor) -> Tensor:
        images, box = self.normalise(x), self.parts(view)[2]
        return erase(images, box) if self.hole else images


class WeakAndStrong(Views):
    """Two views of every sample, with the same crop and flip: plain, and with a policy. [B, 2, C, H, W].

    Args:
        augment: gives the plain view.
        policy: makes a policy from the images' size and device.
        cutout: the strong view also gets a hole.
    """

    def __init__(
        self, augment: Augment, policy: Callable[[Sequence[int], torch.device], Policy], *, cutout: bool = False
    ) -> None:
        super().__init__(augment)
        size = augment.shape[2:]
        self.policy, self.hole = policy(size, augment.device), Cutout(size) if cutout else None

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, columns] int64 on the CPU: the draws of `augment`, of the policy, and of the hole."""
        return columns(*[each.draw(n, generator) for each in (self.augment, self.policy, self.hole) if each])

    def stream(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        index, view, steps, sizes = together(index, view, steps, self.augment.steps_at_once)
        view, drawn, box = parted(view, self.policy.columns, 4 if self.hole else 0)
        for x, step, some in zip(self.augment.pixels(index, view, steps), steps, sizes, strict=True):
            both = self.augment.finish(torch.stack([x, self.policy(x, drawn[step])], 1), view[step])
            if self.hole:
                erase(both[:, 1], box[step])
            yield from both.split(some)
