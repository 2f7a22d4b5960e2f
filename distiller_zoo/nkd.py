"""From Knowledge Distillation to Self-Knowledge Distillation. Yang et al., ICCV 2023. https://arxiv.org/abs/2303.13005

-p_t log p_s of the label - gamma T^2 sum_k q_t log q_s,  q: softmax(z / T) over the other classes
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full, is_label, labels_of, without
from .base import Batch, Distiller, Output, Pair, Temperature, Weight


def target_part(z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
    """-p_t log p_s of the label at temperature 1, for each sample, [B]."""
    p_t, log_s = z_t.softmax(1), z_s.log_softmax(1)
    return -(p_t * log_s).gather(1, labels.unsqueeze(1)).squeeze(1)


def other_part(z_s: Tensor, z_t: Tensor, labels: Tensor, T: float) -> Tensor:
    """T^2 times the cross entropy among the classes other than the label, for each sample, [B]."""
    own = is_label(z_s, labels)
    p_t, log_s = F.softmax(without(z_t / T, own), dim=1), F.log_softmax(without(z_s / T, own), dim=1)
    return -(T**2) * (p_t * log_s).sum(1)


class NKD(Distiller, name="nkd"):
    """Cross entropy weighted by the teacher's confidence in the label, plus that among the other classes, normalised.

    The authors' defaults are for ImageNet. On CIFAR-100 they use nkd_T 3 and nkd_gamma 3.5.

    Args:
        nkd_gamma: weight of the other classes' part.
        nkd_T: temperature of the other classes' part.
    """

    weights = (1.0, 0.0, 1.0)
    one_label = True
    reads = ()
    standardisable = True

    def __init__(self, pair: Pair, *, nkd_gamma: Weight = 1.5, nkd_T: Temperature = 1.0) -> None:
        super().__init__(pair)
        self.gamma, self.T = nkd_gamma, nkd_T

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t, labels = full(s.logits), full(t.logits.detach()), labels_of(s, batch)
        others = other_part(z_s, z_t, labels, self.T)
        return target_part(z_s, z_t, labels) + self.gamma * others
