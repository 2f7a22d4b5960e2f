"""Information Theoretic Representation Distillation. Miles, Lopez-Rodriguez, Mikolajczyk, BMVC 2022.
https://arxiv.org/abs/2112.00459

corr log2 sum_d |c_d - 1|^(2 alpha) + mutual (|A_s|^2 - |A_st|^2),  c_d: correlation of feature d over the batch;
A: Gram matrices of the samples scaled to trace 1, of the student, and multiplied by the teacher's

Differs: features that are constant over the batch, and networks that agree, have a defined value and gradient.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from .adapters import full, standardise, unit
from .base import Batch, Distiller, Output, Pair, Range, Weight


def of_trace_one(gram: Tensor) -> Tensor:
    trace = gram.diagonal().sum()
    return gram / torch.where(trace == 0, 1.0, trace)


class ITRD(Distiller, name="itrd"):
    """Correlates each pooled feature with the teacher's, and matches the samples' similarities (an estimate of mutual
    information).

    The defaults are the authors' command for WRN; their program's own are itrd_corr 0.05 and itrd_alpha 1.5.

    Args:
        itrd_corr: weight of the features' correlation.
        itrd_mutual: weight of the samples' mutual information.
        itrd_alpha: power of each feature's distance from a correlation of 1.
    """

    weights = (1.0, 0.0, 1.0)
    reads = ()
    relational = True

    def __init__(
        self,
        pair: Pair,
        *,
        itrd_corr: Weight = 2.0,
        itrd_mutual: Weight = 1.0,
        itrd_alpha: Annotated[float, Range(float, 1, 100)] = 1.01,
    ) -> None:
        super().__init__(pair)
        self.corr, self.mutual, self.alpha = itrd_corr, itrd_mutual, itrd_alpha
        self.embed = nn.Linear(pair.s.pooled.shape[1], pair.t.pooled.shape[1])

    def correlation(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        c = (standardise(f_s, 0, 0.0) * standardise(f_t, 0, 0.0)).mean(0)
        return (c - 1).square().pow(self.alpha).sum().clamp_min(1e-12).log2()

    def mutual_information(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        f_s, f_t = unit(f_s), unit(f_t)
        gram = f_s @ f_s.T
        alone, together = of_trace_one(gram), of_trace_one(gram * (f_t @ f_t.T))
        return alone.square().sum() - together.square().sum()

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        f_s, f_t = full(s.pooled), full(t.pooled.detach())
        embedded = self.embed(f_s)
        mutual = self.mutual_information(embedded if f_s.shape[1] != f_t.shape[1] else f_s, f_t)
        return self.corr * self.correlation(embedded, f_t) + self.mutual * mutual
