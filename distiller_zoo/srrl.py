"""Knowledge Distillation via Softmax Regression Representation Learning. Yang et al., ICLR 2021.
https://openreview.net/forum?id=ZzwDy_wiWv

mean((g - f_t)^2) + srrl_logit mean((h_t(g) - z_t)^2),  g: connector(F_s) averaged over space,  h_t: teacher's head

Differs: the target f_t is what the teacher's classifier reads; in most networks this is the mean of its last map.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import BatchNorm, frozen, full
from .base import Batch, Distiller, Output, Pair, Weight


class SRRL(Distiller, name="srrl"):
    """The student's last map, at the teacher's width, learns the teacher's pooled features and, through the teacher's
    classifier, its logits.

    The student keeps its own classifier.

    Args:
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
