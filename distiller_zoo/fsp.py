"""A Gift from Knowledge Distillation. Yim et al., CVPR 2017.
https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html

sum_l mean((G_s - G_t)^2),  G = F_(l+1) F_l' / (H W):  products of the channels of neighbouring maps

As in RepDistiller, the larger of two maps is average-pooled. After the initialisation only the labels (and KD, if -a is
given) train the student, so `-b` has no effect. `--fsp_norm` is torchdistill's form.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters import full, pair_maps, same_size
from .base import Batch, Distiller, Output, Pair


def flow(maps: Sequence[Tensor], pool: Callable = F.adaptive_avg_pool2d) -> list[Tensor]:
    """Mean over space of each map's channels times the next map's channels, [B, C_next, C]."""
    pairs = (same_size(full(low), full(high), pool) for low, high in zip(maps[:-1], maps[1:], strict=True))
    return [high.flatten(2) @ low.flatten(2).mT / low[0, 0].numel() for low, high in pairs]


class FSP(Distiller, name="fsp"):
    """Initialises the student to match the teacher's flow of features from one map to the next, including the stem.

    Args:
        fsp_norm: max-pooling instead of average-pooling, and norms of the matrices' rows instead of squares.

    Raises:
        ValueError: paired maps differ in channels, or there are fewer than two.
    """

    weights = (1.0, 0.0, 0.0)
    reads = ("feats",)

    def __init__(self, pair: Pair, *, fsp_norm: bool = False) -> None:
        super().__init__(pair)
        self.norm = fsp_norm
        pairs = pair_maps(pair.s.feats, pair.t.feats)
        c_s, c_t = ([f[side].shape[1] for f in pairs] for side in (0, 1))
        if c_s != c_t:
            raise ValueError(f"fsp needs equal channels, not {c_s} and {c_t}")
        if len(pairs) < 2:
            raise ValueError(f"fsp needs at least two maps, not {len(pair.s.feats)} and {len(pair.t.feats)}")

    def init_loss(self, s: Output, t: Output, batch: Batch) -> Tensor:
        maps_s, maps_t = zip(*pair_maps(s.feats, t.feats), strict=True)
        pool = F.adaptive_max_pool2d if self.norm else F.adaptive_avg_pool2d
        pairs = zip(flow(maps_s, pool), flow([f.detach() for f in maps_t], pool), strict=True)
        if self.norm:  # the gradient of vector_norm at zero is zero
            return sum(torch.linalg.vector_norm(m_s - m_t, dim=2).sum() for m_s, m_t in pairs) / len(s.logits)
        return sum((m_s - m_t).square().mean() for m_s, m_t in pairs)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return full(s.logits.new_zeros(()))
