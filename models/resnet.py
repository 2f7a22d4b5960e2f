"""Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385

The networks for 32x32 images of section 4.2. Differs from the paper: where the shape changes, the shortcut is a 1x1
convolution with BatchNorm (the paper pads with zeros). The x4 networks have four times the channels, with a stem only
twice as wide.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network, init_convs, register, run_stages


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Returns the sum before the last ReLU: in a stage's last block, this is the pre-activation."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(c_in, c_out, stride)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = conv3x3(c_out, c_out)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return out


class ResNet(Network):
    """Depth 6n+2: three stages of n blocks. widths: channels of the stem and the stages."""

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        n = (depth - 2) // 6
        stem, *stages = widths
        self.conv1 = conv3x3(3, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = self._stage(n, stem, stages[0], stride=1)
        self.layer2 = self._stage(n, stages[0], stages[1], stride=2)
        self.layer3 = self._stage(n, stages[1], stages[2], stride=2)
        self.fc = nn.Linear(stages[2], num_classes)
        init_convs(self)

    @staticmethod
    def _stage(n: int, c_in: int, c_out: int, stride: int) -> nn.ModuleList:
        return nn.ModuleList(BasicBlock(c_out if i else c_in, c_out, 1 if i else stride) for i in range(n))

    def features(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        feats, preacts = run_stages(x, (self.layer1, self.layer2, self.layer3))
        return feats, preacts, F.adaptive_avg_pool2d(feats[-1], 1).flatten(1)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [stage[-1].bn2 for stage in (self.layer1, self.layer2, self.layer3)]


for depth in (8, 14, 20, 26, 32, 44, 56, 110):
    register(f"resnet{depth}", partial(ResNet, depth, (16, 16, 32, 64)))
for depth in (8, 32):
    register(f"resnet{depth}x4", partial(ResNet, depth, (32, 64, 128, 256)))
