"""Logit Standardization in Knowledge Distillation. Sun et al., CVPR 2024. https://arxiv.org/abs/2403.01427

T^2 KL(p_t || p_s),  p = softmax(Z / T),  Z = (z - mean(z)) / std(z) over the classes

Differs: logits that are constant to within rounding become zeros. `--standardise` standardises them for any other
method and for KD.
"""

from torch import Tensor

from .adapters import standardise
from .base import Batch, Output, Pair, Temperature
from .kd import KD, kd_each


class LSKD(KD, name="lskd", aliases=("kd_ls",)):
    """KD between standardised logits. Only the cross entropy fixes the scale of the student's logits."""

    weights = (0.1, 0.0, 9.0)
    temperature = 2.0
    standardisable = False  # the logits are standardised already

    def __init__(self, pair: Pair, *, kd_T: Temperature = 2.0) -> None:
        super().__init__(pair, kd_T=kd_T)

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return kd_each(standardise(s.logits), standardise(t.logits), self.kd_T)
