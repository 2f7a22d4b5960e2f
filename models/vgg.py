"""Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, https://arxiv.org/abs/1409.1556

For small images. Differs from the paper: BatchNorm after every convolution; one linear layer on the averaged map
instead of three; the last stage is averaged, not max-pooled; images below 64 pixels skip the pooling before it, so that
32x32 images still leave 4x4 cells. vgg8 has one convolution in each stage.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network, init_convs, register

WIDTHS = (64, 128, 256, 512, 512)


def stage(n: int, c_in: int, c_out: int) -> nn.Sequential:
    """n times convolution, BatchNorm and ReLU, without the last ReLU, so that it returns the pre-activation."""
    layers: list[nn.Module] = []
    for i in range(n):
        conv = nn.Conv2d(c_out if i else c_in, c_out, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class VGG(Network):
    """convs: number of convolutions in each of the five stages."""

    head_name = "classifier"

    def __init__(self, convs: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        c_in = 3
        for i, (n, c_out) in enumerate(zip(convs, WIDTHS, strict=True)):
            self.register_module(f"block{i}", stage(n, c_in, c_out))
            c_in = c_out
        self.classifier = nn.Linear(c_in, num_classes)
        init_convs(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def features(self, x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        large = min(x.shape[-2:]) >= 64
        x = F.relu(self.block0(x), inplace=True)
        feats, preacts = [x], [x]
        for block in (self.block1, self.block2, self.block3, self.block4):
            if large or block is not self.block4:
                x = F.max_pool2d(x, 2)
            preact = block(x)
            x = F.relu(preact)
            feats.append(x)
            preacts.append(preact)
        return tuple(feats), tuple(preacts), F.adaptive_avg_pool2d(x, 1).flatten(1)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        return [block[-1] for block in (self.block1, self.block2, self.block3, self.block4)]


register("vgg8", partial(VGG, (1, 1, 1, 1, 1)))
register("vgg11", partial(VGG, (1, 1, 2, 2, 2)))
register("vgg13", partial(VGG, (2, 2, 2, 2, 2)))
register("vgg16", partial(VGG, (2, 2, 3, 3, 3)))
register("vgg19", partial(VGG, (2, 2, 4, 4, 4)))
