"""The contrastive distillation of ExplainableML/FantasticGains (https://arxiv.org/abs/2310.17653 is its paper).

Despite its name a relation between samples: there are no labels, negatives or temperature.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .adapters import full, unit
from .base import Batch, Distiller, Output, Pair


def log_relations(h: Tensor) -> Tensor:
    """Log softmax over each row of the cosines between samples, [B, B], the diagonal included."""
    h = unit(full(h))
    return F.log_softmax(h @ h.T, dim=1)


class CD(Distiller, name="cd"):
    """KL from the teacher's to the student's relations of pooled features, of any widths.

    cd_reduce: the `sum` over the batch as in the authors' code, so that its weight grows with the batch, or the `mean`.
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
