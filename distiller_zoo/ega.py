"""Distilling Knowledge from Self-Supervised Teacher by Embedding Graph Alignment. Ma, Chen, Akata, BMVC 2022.
https://arxiv.org/abs/2211.13264

Differs: pooled features of unequal widths go through a learned linear layer; a constant row correlates with nothing.
"""

import torch
from torch import Tensor

from .adapters import centred, full
from .base import Batch, Distiller, Output, Pair, Weight
from .cse_l2 import embedding


class EGA(Distiller, name="ega"):
    """Correlations between the samples' features: the student's with the teacher's are the identity (ega_node), and
    among themselves the student's are the teacher's (ega_edge).

    ega_node: weight of the correlations with the teacher's features. ega_edge: weight of the correlations among the
    student's features. -b 1, ega_node 0.8 and ega_edge 0.3 or 0.24 are the authors', for CLIP teachers; 1 and 0.3 are
    their loss's own.
    """

    weights = (1.0, 0.0, 1.0)
    reads = ()
    relational = True

    def __init__(self, pair: Pair, *, ega_node: Weight = 1.0, ega_edge: Weight = 0.3) -> None:
        super().__init__(pair)
        self.node, self.edge = ega_node, ega_edge
        self.embed = embedding(pair)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        (x_s, square_s), (x_t, square_t) = (
            centred(x, 1) for x in (self.embed(full(s.pooled)), full(t.pooled.detach()))
        )
        x_s, x_t = x_s * square_s.rsqrt(), x_t * square_t.rsqrt()
        node = x_t @ x_s.T - torch.eye(len(x_s), dtype=x_s.dtype, device=x_s.device)
        edge = x_t @ x_t.T - x_s @ x_s.T
        # the gradient of a norm at zero is zero
        return self.node * torch.linalg.vector_norm(node) + self.edge * torch.linalg.vector_norm(edge)
