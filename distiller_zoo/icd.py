"""DCD: Discriminative and Consistent Representation Distillation. Giakoumoglou, Stathaki, 2024.
https://arxiv.org/abs/2407.11802 (first titled Invariant Consistency for Knowledge Distillation: ICD)

-mean_i log R_ii + alpha KL(C' || R),  R, C: softmax of e_s e_t' exp(tau) + b over rows, over columns
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import UnitLinear
from .base import Batch, Distiller, Output, Pair, Temperature, Weight, Width


class ICD(Distiller, name="icd", aliases=("dcd",)):
    """Each student embedding finds its own teacher embedding in the batch (contrast), and similarities agree from both
    sides (consistency).

    Args:
        feat_dim: width of the embeddings.
        icd_alpha: weight of the consistency.
        icd_trainable: learn the scale exp(tau) of the similarities, at most max_tau.
        nce_t: the scale if it is not learned, as in the authors' code. The bias b cancels in both softmaxes and never
            trains; it is there because the authors have it.
    """

    weights = (1.0, 0.0, 1.0)
    reads = ()
    relational = True
    max_tau = 10.0

    def __init__(
        self,
        pair: Pair,
        *,
        feat_dim: Width = 128,
        icd_alpha: Weight = 0.5,
        icd_trainable: bool = True,
        nce_t: Temperature = 0.07,
    ) -> None:
        super().__init__(pair)
        self.alpha, self.nce_t = icd_alpha, nce_t
        self.embed_s = UnitLinear(pair.s.pooled.shape[1], feat_dim)
        self.embed_t = UnitLinear(pair.t.pooled.shape[1], feat_dim)
        self.tau = nn.Parameter(torch.tensor(1.0)) if icd_trainable else None
        self.b = nn.Parameter(torch.tensor(0.0)) if icd_trainable else None

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        logits = self.embed_s(s.pooled) @ self.embed_t(t.pooled.detach()).T  # [student, teacher]
        if self.tau is None:
            logits = logits * self.nce_t
        else:
            logits = logits * self.tau.exp().clamp(max=self.max_tau) + self.b
        by_student, by_teacher = logits.log_softmax(1), logits.log_softmax(0).T
        contrast = -by_student.diagonal().mean()
        return contrast + self.alpha * F.kl_div(by_student, by_teacher, reduction="batchmean", log_target=True)
