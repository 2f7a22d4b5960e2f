"""Distilling Knowledge from Self-Supervised Teacher by Embedding Graph Alignment. Ma, Chen, Akata, BMVC 2022.
https://arxiv.org/abs/2211.13264

node |C_ts - I| + edge |C_tt - C_ss|,  C_ab: correlations [B, B] of the samples' features in networks a and b

Differs: if the widths differ, the student's features pass a learned linear layer; a constant row has correlation 0.
"""

import torch
from torch import Tensor

from .adapters import centred, full
from .base import Batch, Distiller, Output, Pair, Weight
from .cse_l2 import embedding


class EGA(Distiller, name="ega"):
    """Matches each sample's student feature to its teacher feature, and the samples' correlations in both networks.

    The authors use -b 1, ega_node 0.8 and ega_edge 0.3 or 0.24 for CLIP teachers; their loss's own defaults are 1 and
    0.3.

    Args:
        ega_node: weight of the correlations with the teacher's features.
        ega_edge: weight of the correlations among the student's features.
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
