"""ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, CVPR 2018,
https://arxiv.org/abs/1707.01083

Three groups, for small images: a 1x1 stem of stride 1 instead of the 3x3 one of stride 2, and no max-pooling. Differs
from the paper: ReLU also after the depthwise convolution; where the map shrinks, the branch's channels come before the
shortcut's. PyTorch's default initialisation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network, register, run_stages

GROUPS = 3
STEM = 24
STAGES = ((240, 4), (480, 8), (960, 4))  # channels, blocks


class Block(nn.Module):
    """Returns the sum (where the map shrinks: the concatenation) before the block's last ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        c_branch = c_out if stride == 1 else c_out - c_in  # the shortcut provides the rest
        hidden = c_branch // 4
        self.groups = 1 if c_in == STEM else GROUPS  # the stem has too few channels to be grouped
        self.conv1 = nn.Conv2d(c_in, hidden, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, c_branch, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(c_branch)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.groups > 1:
            out = F.channel_shuffle(out, self.groups)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], 1)
        out += x
        return out


class ShuffleNetV1(Network):
    head_name = "linear"
    learning_rate = 0.01

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        c_in = STEM
        for i, (c_out, n) in enumerate(STAGES, start=1):
            blocks = [Block(c_in, c_out, stride=2)] + [Block(c_out, c_out, stride=1) for _ in range(n - 1)]
            self.register_module(f"layer{i}", nn.ModuleList(blocks))
            c_in = c_out
        self.linear = nn.Linear(c_in, num_classes)

    def features(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        feats, preacts = run_stages(x, (self.layer1, self.layer2, self.layer3))
        return feats, preacts, F.adaptive_avg_pool2d(feats[-1], 1).flatten(1)


register("ShuffleV1", ShuffleNetV1)
