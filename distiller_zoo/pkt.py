"""Probabilistic Knowledge Transfer. Passalis, Tefas, ECCV 2018. https://arxiv.org/abs/1803.10837

mean(P_t log(P_t / P_s)),  P: (1 + cosine) / 2 of all pairs of samples, [B, B], each row divided by its sum

As in RepDistiller, it is the mean over all B^2 entries, not the sum (hence the weight of 30000), and includes the
diagonal.
"""

import torch
from torch import Tensor

from .adapters import full
from .base import Batch, Distiller, Output


class PKT(Distiller, name="pkt"):
    """KL divergence between the networks' distributions of similarities of pooled features."""

    weights = (1.0, 0.0, 30000.0)
    reads = ()
    relational = True
    eps = 1e-7  # in the norms and in the logarithms

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        p_s, p_t = self._rows(s.pooled), self._rows(t.pooled.detach())
        return (p_t * ((p_t + self.eps) / (p_s + self.eps)).log()).mean()

    def _rows(self, x: Tensor) -> Tensor:
        """Each sample's similarities to the batch, in 0..1, divided by their sum, [B, B]."""
        x = full(x)
        square = x.square().sum(1, keepdim=True)
        x = x / (torch.where(square > 0, square, 1.0).sqrt() + self.eps)  # the root has no gradient at a zero row
        similarity = ((x @ x.T + 1) / 2).clamp_min(0.0)  # rounding, mostly TF32's, gives cosines below -1
        return similarity / similarity.sum(1, keepdim=True)
