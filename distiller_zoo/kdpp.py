"""Improving Knowledge Distillation via Regularizing Feature Norm and Direction (KD++). Wang et al., ECCV 2024.
https://arxiv.org/abs/2305.17007

Differs: the teacher's class means are those of all views seen so far, kept beside the student, where the authors pass
over the training set before; the KD term (-a) rises over 20 epochs that count from 1 (theirs from 0, so that the first
has none); unequal widths have a linear layer.
"""

import torch
from torch import Tensor

from .adapters import full, is_label, labels_of, unit
from .base import Batch, Distiller, Output, Pair
from .cse_l2 import embedding


class KDPP(Distiller, name="kdpp"):
    """Pooled features shall point where the teacher's mean of their class does, and be no shorter than the teacher's.

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
        self.register_buffer("sums", torch.zeros(classes, width))  # of the teacher's features, by class
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
