"""Distilling the Knowledge in a Neural Network. Hinton, Vinyals, Dean, 2015. https://arxiv.org/abs/1503.02531

-T^2 sum_k p_t log p_s,  p = softmax(z / T)

Cross entropy with soft targets, as in the paper. It has KD's gradient, and exceeds KD by the teacher's entropy.
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full
from .base import Batch, Distiller, Output, Pair, Temperature


class Hinton(Distiller, name="hinton"):
    """T^2 times the cross entropy with the teacher's softened probabilities, averaged over the batch.

    Args:
        kd_T: temperature of both networks' probabilities.
    """

    weights = (0.5, 0.0, 0.5)
    reads = ()
    standardisable = True

    def __init__(self, pair: Pair, *, kd_T: Temperature = 4.0) -> None:
        super().__init__(pair)
        self.T = kd_T

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        p_t = F.softmax(full(t.logits.detach()) / self.T, dim=1)
        return F.cross_entropy(full(s.logits) / self.T, p_t, reduction="none") * self.T**2
