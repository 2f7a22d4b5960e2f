"""ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018,
https://arxiv.org/abs/1807.11164

For small images: a 1x1 stem of stride 1 instead of the 3x3 one of stride 2, and no max-pooling. Differs from the paper:
width 2 has 224 channels in its first stage, not 244. PyTorch's default initialisation. A stage's pre-activation is
taken before its last ReLU and shuffle, so its channels are in another order than the feature's.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network, register, register_pattern, run_stages

STEM = 24
BLOCKS = (4, 8, 4)
WIDTHS = {  # channels of the three stages and of the last convolution
    "0.5": (48, 96, 192, 1024),
    "1": (116, 232, 464, 1024),
    "1.5": (176, 352, 704, 1024),
    "2": (224, 488, 976, 2048),
}


class Block(nn.Module):
    """Transforms half of the channels. Returns both halves before the last ReLU and the shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        unchanged, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        out = self.bn3(self.conv3(out))
        return torch.cat([unchanged, out], 1)


class DownBlock(nn.Module):
    """Halves the map. Two branches see all channels: conv1-2 and conv3-5. Returns both, as Block does."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        half = c_out // 2
        self.conv1 = nn.Conv2d(c_in, c_in, 3, stride=2, padding=1, groups=c_in, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv2 = nn.Conv2d(c_in, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(c_in, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return torch.cat([left, right], 1)


class ShuffleNetV2(Network):
    head_name = "linear"
    learning_rate = 0.01

    def __init__(self, width: str, num_classes: int) -> None:
        super().__init__()
        *channels, last = WIDTHS[width]
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        c_in = STEM
        for i, (c_out, n) in enumerate(zip(channels, BLOCKS, strict=True), start=1):
            blocks = [DownBlock(c_in, c_out)] + [Block(c_out) for _ in range(n - 1)]
            self.register_module(f"layer{i}", nn.ModuleList(blocks))
            c_in = c_out
        self.conv2 = nn.Conv2d(c_in, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, num_classes)

    def features(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        # the kept half is never negative, so one ReLU may pass over both
        stages = self.layer1, self.layer2, self.layer3
        feats, preacts = run_stages(x, stages, then=lambda x: F.channel_shuffle(x, 2))
        x = F.relu(self.bn2(self.conv2(feats[-1])), inplace=True)
        return feats, preacts, F.adaptive_avg_pool2d(x, 1).flatten(1)


register("ShuffleV2", partial(ShuffleNetV2, "1"))
for width in ("0.5", "1.5", "2"):
    register(f"ShuffleV2_{width}", partial(ShuffleNetV2, width))
register_pattern(r"ShuffleV2_([12])\.0", ShuffleNetV2)
