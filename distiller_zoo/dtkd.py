"""Dynamic Temperature Knowledge Distillation. Wei, Bai, 2024. https://arxiv.org/abs/2404.12711

alpha T_s T_t KL(softmax(z_t / T_t) || softmax(z_s / T_s)) + beta KD,  T_i = 2 T m_i / (m_s + m_t),  m = max(z)

Differs: computed from log-probabilities; m is at least 0.01, so that temperatures stay positive. The temperatures are
those of the authors' code, from the largest logit.
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full, kl_rows
from .base import Batch, Distiller, Output, Pair, Temperature, Weight
from .kd import kd_each


class DTKD(Distiller, name="dtkd"):
    """KD with a temperature for each sample and network, higher for the sharper network, plus plain KD.

    The authors use dtkd_alpha 1 and dtkd_beta 0.5 for resnet20, where these differ.

    Args:
        dtkd_alpha: weight of KD at the samples' temperatures.
        dtkd_beta: weight of KD at the base temperature.
        dtkd_T: base temperature.
    """

    weights = (1.0, 0.0, 1.0)
    reads = ()
    standardisable = True
    warm_up = 20
    least = 1e-2

    def __init__(
        self, pair: Pair, *, dtkd_alpha: Weight = 3.0, dtkd_beta: Weight = 1.0, dtkd_T: Temperature = 4.0
    ) -> None:
        super().__init__(pair)
        self.alpha, self.beta, self.T = dtkd_alpha, dtkd_beta, dtkd_T

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t = full(s.logits), full(t.logits.detach())
        a, b = (z.amax(1, keepdim=True).clamp_min(self.least) for z in (z_s, z_t))
        T_s, T_t = 2 * self.T * a / (a + b), 2 * self.T * b / (a + b)
        each = kl_rows(F.log_softmax(z_s / T_s, dim=1), F.log_softmax(z_t / T_t, dim=1))
        return self.alpha * (T_s * T_t).squeeze(1) * each + self.beta * kd_each(z_s, z_t, self.T)
