"""Wide Residual Networks, BMVC 2016, https://arxiv.org/abs/1605.07146

wrn_D_W: depth D = 6n+4, W times the channels of the thin network. Differs from the paper: no dropout. A stage's feature
is its raw sum. Its pre-activation is the output of the next BatchNorm (the first of the next stage), so relu(preact) is
not the feature.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network, init_convs, register, register_pattern


class Block(nn.Module):
    """The stage calls bn1, because the first block's bn1 also computes the previous stage's pre-activation."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if c_in != c_out else None

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        """x: the block's input; active: relu(bn1(x))."""
        out = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        out += x if self.convShortcut is None else self.convShortcut(active)
        return out


class Stage(nn.Module):
    def __init__(self, n: int, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Block(c_out if i else c_in, c_out, 1 if i else stride) for i in range(n))

    def forward(self, x: Tensor, normed: Tensor) -> Tensor:
        """x: the stage's input. normed: x after its first BatchNorm."""
        for i, block in enumerate(self.layer):
            # not in place: `normed` is returned as a pre-activation
            active = F.relu(block.bn1(x), inplace=True) if i else F.relu(normed)
            x = block(x, active)
        return x


class WideResNet(Network):
    """Raises ValueError if depth is not 6n+4 (n blocks in each of three stages), or above 1000, or width above 100."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        n, rest = divmod(depth - 4, 6)
        if n < 1 or rest:
            raise ValueError(f"the depth of a wide ResNet is 6n+4 (10, 16, 22, 28, 34, 40, ...), not {depth}")
        if depth > 1000 or width > 100:
            raise ValueError(f"a wide ResNet's depth is at most 1000, its width at most 100, not {depth} and {width}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(n, 16, 16 * width, stride=1)
        self.block2 = Stage(n, 16 * width, 32 * width, stride=2)
        self.block3 = Stage(n, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        init_convs(self)
        nn.init.zeros_(self.fc.bias)

    def features(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        x = self.conv1(x)
        feats, preacts = [x], [x]
        normed = self.block1.layer[0].bn1(x)
        for stage, next_bn in zip((self.block1, self.block2, self.block3), self.get_bn_before_relu(), strict=True):
            x = stage(x, normed)
            normed = next_bn(x)
            feats.append(x)
            preacts.append(normed)
        return tuple(feats), tuple(preacts), F.adaptive_avg_pool2d(F.relu(normed), 1).flatten(1)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1]


def wrn(depth: str, width: str, num_classes: int) -> WideResNet:
    return WideResNet(int(depth), int(width), num_classes)


for depth, width in ((16, 1), (16, 2), (40, 1), (40, 2)):
    register(f"wrn_{depth}_{width}", partial(WideResNet, depth, width))
register_pattern(r"(?:wrn|WRN)[_-](\d+)[_-]([1-9]\d*)", wrn)  # wrn_28_4, or WRN-28-4 as in other projects
