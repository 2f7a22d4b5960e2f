"""MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, https://arxiv.org/abs/1801.04381

Half width, for small images. Differs from the paper: ReLU instead of ReLU6; stride 1 in the 24-channel stage; the first
block has a 1x1 expansion although it expands by 1; channels are not rounded to multiples of 8; no dropout. Stages end
without a ReLU, so features and pre-activations are the same.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network, init_convs, register

# expansion, channels at full width, blocks, stride
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
LAST = 1280
FEATURES = (1, 2, 4, 6)  # the last stage of each resolution


def conv_bn_relu(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]


class InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.residual = stride == 1 and c_in == c_out
        self.conv = nn.Sequential(
            *conv_bn_relu(c_in, hidden, 1),
            *conv_bn_relu(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        if self.residual:
            out += x
        return out


class MobileNetV2(Network):
    head_name = "classifier.0"
    learning_rate = 0.01

    def __init__(self, width: float, num_classes: int) -> None:
        super().__init__()
        c_in = int(32 * width)
        self.conv1 = nn.Sequential(*conv_bn_relu(3, c_in, 3, stride=2))
        self.blocks = nn.ModuleList()
        for expansion, channels, n, stride in STAGES:
            c_out = int(channels * width)
            units = []
            for i in range(n):
                units.append(InvertedResidual(c_in, c_out, 1 if i else stride, expansion))
                c_in = c_out
            self.blocks.append(nn.Sequential(*units))
        self.conv2 = nn.Sequential(*conv_bn_relu(c_in, LAST, 1))
        self.classifier = nn.Sequential(nn.Linear(LAST, num_classes))
        init_convs(self)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        x = self.conv1(x)
        feats = [x]
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in FEATURES:
                feats.append(x)
        pooled = F.adaptive_avg_pool2d(self.conv2(x), 1).flatten(1)
        return tuple(feats), tuple(feats), pooled

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The last BatchNorm of stages 1 .. 4. No ReLU follows it here."""
        return [self.blocks[i][-1].conv[-1] for i in FEATURES]


register("MobileNetV2", partial(MobileNetV2, 0.5))
