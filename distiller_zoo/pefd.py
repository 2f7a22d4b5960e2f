"""Improved Feature Distillation via Projector Ensemble. Chen et al., NeurIPS 2022. https://arxiv.org/abs/2210.15274

1 - cos(mean_i relu(W_i f_s), f_t)

Differs: a sample whose feature is zero in either network has distance 1 and no gradient.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import full, unit
from .base import Batch, Distiller, Output, Pair, Range


class PEFD(Distiller, name="pefd"):
    """Aligns the mean of several projectors, with different initial weights, with the teacher's pooled feature.

    Args:
        pefd_projectors: number of projectors.
    """

    weights = (1.0, 0.0, 25.0)
    reads = ()

    def __init__(self, pair: Pair, *, pefd_projectors: Annotated[int, Range(int, 1, 256)] = 3) -> None:
        super().__init__(pair)
        d_s, d_t = pair.s.pooled.shape[1], pair.t.pooled.shape[1]
        self.projectors = nn.ModuleList(nn.Linear(d_s, d_t) for _ in range(pefd_projectors))

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        f_s = full(s.pooled)
        g = torch.stack([F.relu(project(f_s)) for project in self.projectors]).mean(0)
        return 1 - (unit(g) * unit(full(t.pooled.detach()))).sum(1).mean()
