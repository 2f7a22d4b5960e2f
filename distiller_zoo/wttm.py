"""The weighted form of Knowledge Distillation Based on Transformed Teacher Matching. Zheng, Yang, ICLR 2024.
https://arxiv.org/abs/2402.11148

(sum_k p_t^gamma) KL(q || softmax(z_s)),  q as in `ttm`
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full
from .base import Batch, Output
from .ttm import TTM


class WTTM(TTM, name="wttm"):
    """`ttm` with each sample weighted by the sum of its powered probabilities: more where the teacher is unsure."""

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        log_t = F.log_softmax(full(t.logits.detach()), dim=1)
        return (self.power * log_t).logsumexp(1).exp() * super().per_sample(s, t, batch)
