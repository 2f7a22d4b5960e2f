"""Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective. Zhou et al., ICLR 2021.
https://arxiv.org/abs/2102.00650

-w T^2 sum_k p_t log p_s,  w = 1 - exp(-CE_s / CE_t),  CE: cross entropy with the label at temperature 1
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full, labels_of
from .base import Batch, Distiller, Output, Pair, Temperature


class WSLD(Distiller, name="wsld"):
    """Softened cross entropy. A sample weighs less if the student knows its label well, compared with the teacher.

    Args:
        wsld_T: temperature of the softened probabilities.
    """

    weights = (1.0, 0.0, 2.5)
    one_label = True
    reads = ()
    standardisable = True

    def __init__(self, pair: Pair, *, wsld_T: Temperature = 2.0) -> None:
        super().__init__(pair)
        self.T = wsld_T

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t, labels = full(s.logits), full(t.logits.detach()), labels_of(s, batch)
        hard_s, hard_t = (F.cross_entropy(z, labels, reduction="none") for z in (z_s.detach(), z_t))
        weight = 1 - (-hard_s / (hard_t + 1e-7)).exp()
        soft = F.cross_entropy(z_s / self.T, F.softmax(z_t / self.T, dim=1), reduction="none")
        return self.T**2 * weight * soft
