"""Improving Knowledge Distillation via Regularizing Feature Norm and Direction (KD++). Wang et al., ECCV 2024.
https://arxiv.org/abs/2305.17007

1 - mean(f_s . c_y / max(|f_s|, |f_t|)),  c_y: the teacher's mean feature of class y, of unit length

Differs: class means are over all views seen so far; the authors compute them over the training set in advance. KD (-a)
rises over 20 epochs counted from 1, theirs from 0, so that their first epoch has none. If the widths differ, the
student's features pass a linear layer.
"""

import torch
from torch import Tensor

from .adapters import full, is_label, labels_of, unit
from .base import Batch, Distiller, Output, Pair
from .cse_l2 import embedding


class KDPP(Distiller, name="kdpp"):
    """Aligns pooled features with the teacher's class means, and makes them no shorter than the teacher's.

    The published weights are resnet8x4's; configs/cifar100_pairs.csv has those of other pairs.
    """

    weights = (1.0, 3.5, 2.0)
    one_label = True
    reads = ()
    kd_warm_up = 20
    relational = True  # all processes keep the same means

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        classes, width = pair.t.logits.shape[1], pair.t.pooled.shape[1]
        self.embed = embedding(pair)
        self.register_buffer("sums", torch.zeros(classes, width))  # sums of the teacher's features of each class
        self.register_buffer("counts", torch.zeros(classes, 1))

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        f_s, f_t, labels = self.embed(full(s.pooled)), full(t.pooled.detach()), labels_of(s, batch)
        if self.training:
            members = is_label(self.sums.T, labels).to(self.sums.dtype)
            with torch.no_grad():
                self.sums += members.T @ f_t
                self.counts += members.sum(0).unsqueeze(1)
        direction = unit(self.sums / self.counts.clamp_min(1))[labels]
        square = torch.maximum(f_s.square().sum(1), f_t.square().sum(1))
        length = torch.where(square > 1e-24, square, 1.0).sqrt()
        return 1 - ((f_s * direction).sum(1) / length).mean()
