"""Class Attention Transfer Based Knowledge Distillation. Guo et al., CVPR 2023. https://arxiv.org/abs/2304.12777

Differs: the maps come from the networks as they are, by the classifier's weights; the logits are their means over
space. Where a classifier reads no mean of a map that the network returns (MobileNetV2, ShuffleNetV2), there is only one
cell, the logits themselves, which is also never normalised.
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import ClassifierMap, classify, frozen, unit
from .base import Batch, Distiller, Output, Pair, Width


class CATKD(Distiller, name="catkd", aliases=("cat_kd",)):
    """Mean squared error between the networks' class activation maps, averaged over catkd_size squared cells.

    catkd_size: cells of a map along each side. catkd_normalise: each class's map has unit length. Weights of -b: 15
    (resnet8x4), 0.7 (resnet20), 1.8 (resnet32), 4.5 (vgg8); normalised 15 and 40 (MobileNetV2), and with 4x4 cells 600
    (ShuffleNets).
    """

    weights = (1.0, 0.0, 15.0)

    def __init__(self, pair: Pair, *, catkd_size: Width = 2, catkd_normalise: bool = False) -> None:
        super().__init__(pair)
        self.map_s, self.map_t = ClassifierMap(pair.s), ClassifierMap(pair.t)
        self.reads = tuple({*self.map_s.part, *self.map_t.part})
        self.size, self.normalise = catkd_size, catkd_normalise
        self.head_s = (pair.student.head,)  # the student's, and none of this module's
        self.head_t = frozen(pair.teacher.head)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        f_s, f_t = self.map_s(s), self.map_t(t).detach()
        size = min(self.size, *f_s.shape[2:], *f_t.shape[2:])
        f_s, f_t = (F.adaptive_avg_pool2d(f, size) for f in (f_s, f_t))
        return self.distance(classify(self.head_s[0], f_s), classify(self.head_t, f_t))

    def distance(self, cam_s: Tensor, cam_t: Tensor) -> Tensor:
        """Of two class activation maps [B, K, h, w]."""
        if self.normalise and cam_s[0, 0].numel() > 1:
            cam_s, cam_t = (unit(cam.flatten(2)) for cam in (cam_s, cam_t))
        return F.mse_loss(cam_s, cam_t)
