"""Logit Standardization in Knowledge Distillation. Sun et al., CVPR 2024. https://arxiv.org/abs/2403.01427

`--standardise` does the same in front of any other method and of the KD term. Differs: logits that are constant to
within rounding become zeros.
"""

from torch import Tensor

from .adapters import standardise
from .base import Batch, Output, Pair, Temperature
from .kd import KD, kd_each


class LSKD(KD, name="lskd", aliases=("kd_ls",)):
    """KD between logits that have mean 0 and deviation 1 over the classes; only the labels fix the student's scale."""

    weights = (0.1, 0.0, 9.0)
    temperature = 2.0
    standardisable = False  # they are already

    def __init__(self, pair: Pair, *, kd_T: Temperature = 2.0) -> None:
        super().__init__(pair, kd_T=kd_T)

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return kd_each(standardise(s.logits), standardise(t.logits), self.kd_T)
