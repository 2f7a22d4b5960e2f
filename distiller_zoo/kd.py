"""Distilling the Knowledge in a Neural Network. Hinton, Vinyals, Dean, 2015. https://arxiv.org/abs/1503.02531

Differs: softened KL with the teacher's entropy subtracted (the gradient is that of the paper's cross entropy).
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full
from .base import Batch, Distiller, Output, Pair, Temperature


def kd_each(z_s: Tensor, z_t: Tensor, T: float) -> Tensor:
    """T^2 KL(teacher || student) at temperature T of each sample, [B], summed over classes.

    z_s, z_t: logits [B, K]. No gradient reaches z_t.
    """
    return _elements(z_s, z_t, T).sum(1) * T**2


def kd_loss(z_s: Tensor, z_t: Tensor, T: float) -> Tensor:
    """The batch's mean of kd_each. Averaging over classes too would be K times weaker."""
    return _elements(z_s, z_t, T).sum() / len(z_s) * T**2


def _elements(z_s: Tensor, z_t: Tensor, T: float) -> Tensor:
    log_s = F.log_softmax(full(z_s) / T, dim=1)
    log_t = F.log_softmax(full(z_t.detach()) / T, dim=1)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True)


class KD(Distiller, name="kd"):
    """The loop's own KD term (alpha) is this loss, so the published weights leave beta at 0.

    kd_T: temperature of both networks' probabilities.
    """

    weights = (0.1, 0.9, 0.0)
    reads = ()
    standardisable = True

    def __init__(self, pair: Pair, *, kd_T: Temperature = 4.0) -> None:
        super().__init__(pair)
        self.kd_T = kd_T

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return kd_each(s.logits, t.logits, self.kd_T)
