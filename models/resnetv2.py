"""Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385

The ImageNet networks of section 4.1, for small images: a 3x3 stem of stride 1 instead of the 7x7 one of stride 2, and
no max-pooling. Also differs from the paper: the bottleneck has its stride in the 3x3 convolution.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network, init_convs, register, run_stages


def shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


class BasicBlock(nn.Module):
    """Returns the sum before the last ReLU: in a stage's last block, this is the pre-activation."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = shortcut(c_in, width, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return out


class Bottleneck(nn.Module):
    """Returns the sum before the last ReLU, as BasicBlock does, with 4 * width channels."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = self.expansion * width
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.shortcut = shortcut(c_in, c_out, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return out


class ResNet(Network):
    """blocks: number of blocks in each of the four stages."""

    head_name = "linear"

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int], num_classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        c_in = 64
        for i, n in enumerate(blocks):
            width = 64 * 2**i
            stage = nn.ModuleList()
            for j in range(n):
                stage.append(block(c_in, width, stride=2 if i > 0 and j == 0 else 1))
                c_in = width * block.expansion
            self.register_module(f"layer{i + 1}", stage)
        self.linear = nn.Linear(c_in, num_classes)
        init_convs(self)

    @property
    def stages(self) -> tuple[nn.ModuleList, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def features(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        feats, preacts = run_stages(x, self.stages)
        return feats, preacts, F.adaptive_avg_pool2d(feats[-1], 1).flatten(1)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [stage[-1].last_bn for stage in self.stages]


register("ResNet18", partial(ResNet, BasicBlock, (2, 2, 2, 2)))
register("ResNet34", partial(ResNet, BasicBlock, (3, 4, 6, 3)))
register("ResNet50", partial(ResNet, Bottleneck, (3, 4, 6, 3)))
