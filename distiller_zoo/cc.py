"""Correlation Congruence for Knowledge Distillation. Peng et al., ICCV 2019. https://arxiv.org/abs/1904.01802

Differs, as RepDistiller does: not the paper's kernel between all samples, but the product of the differences of
neighbours in the batch, so the value depends on the batch's order; and the teacher's embedding is trained as well.
"""

from torch import Tensor, nn

from .adapters import full
from .base import Batch, Distiller, Output, Pair


class CC(Distiller, name="cc", aliases=("correlation",)):
    """Mean over neighbours of |e_s - e_t| . |e_s - e_t|', with linear embeddings e of the pooled features."""

    weights = (1.0, 0.0, 0.02)
    relational = True

    def __init__(self, pair: Pair, *, feat_dim: int = 128) -> None:
        super().__init__(pair)
        self.embed_s = nn.Linear(pair.s.pooled.shape[1], feat_dim)
        self.embed_t = nn.Linear(pair.t.pooled.shape[1], feat_dim)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        delta = (self.embed_s(full(s.pooled)) - self.embed_t(full(t.pooled.detach()))).abs()
        return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)  # a single sample has no neighbour: 0
