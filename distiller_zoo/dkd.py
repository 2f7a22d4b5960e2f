"""Decoupled Knowledge Distillation. Zhao et al., CVPR 2022. https://arxiv.org/abs/2203.08679

T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s)),  b = (p_label, 1 - p_label),  q: p among the other classes

Differs: computed from log-probabilities, so that a student that is certain has a finite loss and gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters import full, is_label, kl_rows, labels_of, without
from .base import Batch, Distiller, Output, Pair, Temperature, Weight


def label_and_rest(z: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of label and rest, [B, 2], and of the classes other than the label, [B, K]."""
    others = without(z, own)
    label = z.masked_fill(~own, 0.0).sum(1)
    both = torch.stack([label, others.logsumexp(1)], 1)
    return F.log_softmax(both, dim=1), F.log_softmax(others, dim=1)


def decoupled(z_s: Tensor, z_t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample, [B]: KL of label against rest, and KL among the rest.

    Args:
        z_s, z_t: logits divided by their temperatures, [B, K].
        labels: [B].
    """
    own = is_label(z_s, labels)
    (pair_s, rest_s), (pair_t, rest_t) = label_and_rest(z_s, own), label_and_rest(z_t, own)
    return kl_rows(pair_s, pair_t), kl_rows(rest_s, rest_t)


class DKD(Distiller, name="dkd"):
    """KD in two parts with separate weights: the label's probability, and the other classes'.

    Args:
        dkd_alpha: weight of the label's part.
        dkd_beta: weight of the other classes' part.
        dkd_T: temperature of both networks' probabilities.
    """

    weights = (1.0, 0.0, 1.0)
    one_label = True
    reads = ()
    standardisable = True
    warm_up = 20

    def __init__(
        self, pair: Pair, *, dkd_alpha: Weight = 1.0, dkd_beta: Weight = 8.0, dkd_T: Temperature = 4.0
    ) -> None:
        super().__init__(pair)
        self.alpha, self.beta, self.T = dkd_alpha, dkd_beta, dkd_T

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t = full(s.logits) / self.T, full(t.logits.detach()) / self.T
        target, others = decoupled(z_s, z_t, labels_of(s, batch))
        return self.T**2 * (self.alpha * target + self.beta * others)
