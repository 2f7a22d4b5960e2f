"""Cross-Layer Distillation with Semantic Calibration. Chen et al., AAAI 2021. https://arxiv.org/abs/2012.03236

1/n sum_ij a_ij mean((r_ij(F_s,i) - F_t,j)^2),  a: attention of student stage i to teacher stage j, for each sample

Differs: an incomplete batch is padded with zeros; the authors drop it.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import BatchStatistics, full, same_size, unit
from .base import Batch, Distiller, Output, Pair, Range


def embedder(n: int) -> nn.Sequential:
    """Embeds a sample's similarities to the n samples of a batch."""
    return nn.Sequential(nn.Linear(n, 2 * max(n // 4, 1)), nn.ReLU(), nn.Linear(2 * max(n // 4, 1), max(n // 4, 1)))


def regressor(c_s: int, c_t: int) -> nn.Sequential:
    wide = 2 * c_t
    layers = [nn.Conv2d(c_s, wide, 1, bias=False), BatchStatistics(wide), nn.ReLU()]
    layers += [nn.Conv2d(wide, wide, 3, padding=1, bias=False), BatchStatistics(wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(wide, c_t, 1, bias=False))


class SemCKD(Distiller, name="semckd"):
    """Every stage of the student imitates every stage of the teacher, weighted by attention.

    Attention compares how similar the samples of the batch are in both maps.

    Args:
        semckd_soft: temperature of the attention.
    """

    weights = (1.0, 1.0, 400.0)
    reads = ("feats",)
    relational = True

    def __init__(self, pair: Pair, *, semckd_soft: Annotated[float, Range(float, 0, 1000, "(]")] = 1.0) -> None:
        super().__init__(pair)
        self.soft, self.size = semckd_soft, pair.batch_size
        c_s, c_t = ([f.shape[1] for f in o.feats[1:]] for o in (pair.s, pair.t))
        if not (c_s and c_t):
            raise ValueError(f"semckd needs stage maps, not {len(c_s)} (student) and {len(c_t)} (teacher)")
        self.queries, self.keys = (nn.ModuleList(embedder(self.size) for _ in c) for c in (c_s, c_t))
        self.regressors = nn.ModuleList(nn.ModuleList(regressor(a, b) for b in c_t) for a in c_s)

    def compared(self, o: Output) -> Output:
        return o._replace(feats=o.feats[1:], preacts=())

    def similarities(self, f: Tensor) -> Tensor:
        """Inner products of each sample with its batch, [B, batch size]. A larger batch is split."""
        rows = F.pad(f.flatten(1), (0, 0, 0, -len(f) % self.size)).unflatten(0, (-1, self.size))
        return (rows @ rows.mT).flatten(0, 1)[: len(f)]

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        maps_s = [full(f) for f in s.feats[-len(self.queries) :]]
        maps_t = [full(f.detach()) for f in t.feats[-len(self.keys) :]]
        q, k = (
            torch.stack([unit(embed(self.similarities(f))) for embed, f in zip(embeds, maps, strict=True)], 1)
            for embeds, maps in ((self.queries, maps_s), (self.keys, maps_t))
        )
        attention = F.softmax(q @ k.mT / self.soft, dim=2)  # [B, student's stages, teacher's stages]
        distances = []
        for f_s, row in zip(maps_s, self.regressors, strict=True):
            for f_t, regress in zip(maps_t, row, strict=True):
                a, b = same_size(f_s, f_t)
                distances.append((regress(a) - b).square().mean((1, 2, 3)))
        return (attention.flatten(1) * torch.stack(distances, 1)).sum(1).mean() / len(maps_s)
