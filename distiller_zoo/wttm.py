"""The weighted form of Knowledge Distillation Based on Transformed Teacher Matching. Zheng, Yang, ICLR 2024.
https://arxiv.org/abs/2402.11148
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full
from .base import Batch, Output
from .ttm import TTM


class WTTM(TTM, name="wttm"):
    """Each sample counts as much as its powered teacher probabilities sum to: more where the teacher is unsure."""

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        log_t = F.log_softmax(full(t.logits.detach()), dim=1)
        return (self.power * log_t).logsumexp(1).exp() * super().per_sample(s, t, batch)
