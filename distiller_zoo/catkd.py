"""Class Attention Transfer Based Knowledge Distillation. Guo et al., CVPR 2023. https://arxiv.org/abs/2304.12777

mean((M_s - M_t)^2),  M: the classifier applied to each cell of the last map, pooled to k x k cells

Differs: the networks are not changed; their logits are the mean of M over space. If a classifier does not read the mean
of a returned map (MobileNetV2, ShuffleNetV2), M has a single cell, the logits, which is never normalised.
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import ClassifierMap, classify, frozen, unit
from .base import Batch, Distiller, Output, Pair, Width


class CATKD(Distiller, name="catkd", aliases=("cat_kd",)):
    """Mean squared error between class activation maps, averaged over catkd_size x catkd_size cells.

    Published -b: 15 (resnet8x4), 0.7 (resnet20), 1.8 (resnet32), 4.5 (vgg8); with catkd_normalise 15 and 40
    (MobileNetV2), and 600 with 4x4 cells (ShuffleNets).

    Args:
        catkd_size: cells of a map along each side.
        catkd_normalise: scale each class's map to unit length.
    """

    weights = (1.0, 0.0, 15.0)

    def __init__(self, pair: Pair, *, catkd_size: Width = 2, catkd_normalise: bool = False) -> None:
        super().__init__(pair)
        self.map_s, self.map_t = ClassifierMap(pair.s), ClassifierMap(pair.t)
        self.reads = tuple({*self.map_s.part, *self.map_t.part})
        self.size, self.normalise = catkd_size, catkd_normalise
        self.head_s = (pair.student.head,)  # a tuple, so that it is not a submodule of this one
        self.head_t = frozen(pair.teacher.head)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        f_s, f_t = self.map_s(s), self.map_t(t).detach()
        size = min(self.size, *f_s.shape[2:], *f_t.shape[2:])
        f_s, f_t = (F.adaptive_avg_pool2d(f, size) for f in (f_s, f_t))
        return self.distance(classify(self.head_s[0], f_s), classify(self.head_t, f_t))

    def distance(self, cam_s: Tensor, cam_t: Tensor) -> Tensor:
        """Distance of two class activation maps [B, K, h, w]."""
        if self.normalise and cam_s[0, 0].numel() > 1:
            cam_s, cam_t = (unit(cam.flatten(2)) for cam in (cam_s, cam_t))
        return F.mse_loss(cam_s, cam_t)
