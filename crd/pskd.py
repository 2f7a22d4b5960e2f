"""Self-Knowledge Distillation with Progressive Refinement of Targets. Kim et al., ICCV 2021.
https://arxiv.org/abs/2006.12000

CE(z_s, (1 - a) y + a p_past),  p_past: the student's probabilities in the previous epoch,  a: pskd_alpha epoch / epochs
"""

from typing import Any

import torch
from torch import Tensor

from distiller_zoo.adapters import full, is_label
from distiller_zoo.base import Batch, Distiller, Output, Pair, Share


class PSKD(Distiller, name="pskd", aliases=("ps_kd",)):
    """Cross entropy whose targets move from the labels to the student's own probabilities of the previous epoch.

    No teacher.

    Remembers a probability for each training sample and class.

    Args:
        pskd_alpha: share of the student's own probabilities in the last epoch.
    """

    weights = (0.0, 0.0, 1.0)
    one_label = True
    reads = ()
    relational = True  # so that all processes remember the same probabilities
    follows_epoch = True

    def __init__(self, pair: Pair, *, pskd_alpha: Share = 0.8) -> None:
        super().__init__(pair)
        self.alpha, self.epochs = pskd_alpha, pair.epochs
        labels, classes = pair.labels.cpu(), pair.s.logits.shape[1]
        self.register_buffer("past", (labels.unsqueeze(1) == torch.arange(classes)).float())  # [n_data, K]

    @classmethod
    def needs_teacher(cls, options: dict[str, Any]) -> bool:
        return False

    def forward(self, s: Output, t: Output | None, batch: Batch) -> Tensor:
        views = len(s.logits) // len(batch.labels)
        labels, index = (x.repeat_interleave(views) for x in (batch.labels, batch.index))
        log_p, share = full(s.logits).log_softmax(1), self.alpha * min(self.epoch / self.epochs, 1.0)
        target = (1 - share) * is_label(log_p, labels).to(log_p.dtype) + share * self.past[index]
        if self.training:
            with torch.no_grad():
                self.past.index_copy_(0, batch.index, log_p[::views].exp().to(self.past.dtype))
        return -(target * log_p).sum(1).mean()
