"""Knowledge Distillation Based on Transformed Teacher Matching. Zheng, Yang, ICLR 2024.
https://arxiv.org/abs/2402.11148

KL(q || softmax(z_s)),  q: softmax(z_t)^gamma, normalised
"""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from .adapters import full, kl_rows
from .base import Batch, Distiller, Output, Pair, Range


class TTM(Distiller, name="ttm"):
    """KL towards the teacher's probabilities to the power ttm_gamma. The student has no temperature.

    The best power and weight depend on the pair; the authors use 0.1 and 45 for vgg13 and vgg8.

    Args:
        ttm_gamma: power of the teacher's probabilities, the inverse of a temperature.
    """

    weights = (1.0, 0.0, 45.0)
    reads = ()
    standardisable = True

    def __init__(self, pair: Pair, *, ttm_gamma: Annotated[float, Range(float, 0, 1000, "(]")] = 0.1) -> None:
        super().__init__(pair)
        self.power = ttm_gamma

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        log_t = F.log_softmax(full(t.logits.detach()) * self.power, dim=1)
        return kl_rows(F.log_softmax(full(s.logits), dim=1), log_t)
