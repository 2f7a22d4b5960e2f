"""Distilling the Knowledge in a Neural Network. Hinton, Vinyals, Dean, 2015. https://arxiv.org/abs/1503.02531

T^2 KL(p_t || p_s),  p = softmax(z / T)

Differs: the teacher's entropy is subtracted. The gradient is that of the paper's cross entropy.
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full
from .base import Batch, Distiller, Output, Pair, Temperature


def kd_each(z_s: Tensor, z_t: Tensor, T: float) -> Tensor:
    """T^2 KL(teacher || student) at temperature T for each sample, [B], summed over classes.

    Args:
        z_s, z_t: logits [B, K]. No gradient reaches z_t.
        T: temperature.
    """
    return _elements(z_s, z_t, T).sum(1) * T**2


def kd_loss(z_s: Tensor, z_t: Tensor, T: float) -> Tensor:
    """The mean of kd_each over the batch. Averaging over classes too would make it K times weaker."""
    return _elements(z_s, z_t, T).sum() / len(z_s) * T**2


def _elements(z_s: Tensor, z_t: Tensor, T: float) -> Tensor:
    log_s = F.log_softmax(full(z_s) / T, dim=1)
    log_t = F.log_softmax(full(z_t.detach()) / T, dim=1)
    return F.kl_div(log_s, log_t, reduction="none", log_target=True)


class KD(Distiller, name="kd"):
    """KD. The loop has this loss as its own term (-a), so the published -b is 0.

    Args:
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
