"""Knowledge Distillation via Softmax Regression Representation Learning. Yang et al., ICLR 2021.
https://openreview.net/forum?id=ZzwDy_wiWv

Differs: what the teacher's classifier reads is the target, which is the mean of its last map in most networks.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import BatchNorm, frozen, full
from .base import Batch, Distiller, Output, Pair, Weight


class SRRL(Distiller, name="srrl"):
    """The student's last map, brought to the teacher's width, shall have the teacher's mean over space, and through the
    teacher's classifier its logits. The student keeps a classifier of its own.

    srrl_logit: weight of the logits.
    """

    weights = (1.0, 0.0, 1.0)
    reads = ("feats",)

    def __init__(self, pair: Pair, *, srrl_logit: Weight = 1.0) -> None:
        super().__init__(pair)
        self.weight = srrl_logit
        c_s, d_t = pair.s.feats[-1].shape[1], pair.t.pooled.shape[1]
        self.connector = nn.Sequential(nn.Conv2d(c_s, d_t, 1, bias=False), BatchNorm(d_t), nn.ReLU())
        self.head = frozen(pair.teacher.head)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        g = self.connector(full(s.feats[-1])).mean((2, 3))
        features = F.mse_loss(g, full(t.pooled.detach()))
        return features + self.weight * F.mse_loss(self.head(g), full(t.logits.detach()))
