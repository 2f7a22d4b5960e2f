"""The contrastive distillation of ExplainableML/FantasticGains. Roth et al., ICLR 2024.
https://arxiv.org/abs/2310.17653

KL(softmax(h_t h_t') || softmax(h_s h_s')),  h: pooled features of unit length, [B, D]

Despite its name it compares relations between samples: it has no labels, negatives or temperature.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .adapters import full, unit
from .base import Batch, Distiller, Output, Pair


def log_relations(h: Tensor) -> Tensor:
    """Log-softmax over each row of the samples' cosines, [B, B], including the diagonal."""
    h = unit(full(h))
    return F.log_softmax(h @ h.T, dim=1)


class CD(Distiller, name="cd"):
    """KL from the teacher's to the student's relations between samples. The feature widths may differ.

    Args:
        cd_reduce: `sum` over the batch as in the authors' code, so that a larger batch weighs more, or `mean`.
    """

    weights = (0.1, 0.0, 10.0)
    reads = ()
    relational = True

    def __init__(self, pair: Pair, *, cd_reduce: Literal["sum", "mean"] = "sum") -> None:
        super().__init__(pair)
        self.reduction = "sum" if cd_reduce == "sum" else "batchmean"

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        log_s, log_t = log_relations(s.pooled), log_relations(t.pooled.detach())
        return F.kl_div(log_s, log_t, reduction=self.reduction, log_target=True)
