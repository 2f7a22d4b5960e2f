"""Masked Generative Distillation. Yang et al., ECCV 2022. https://arxiv.org/abs/2205.01529

|generate(M * F_s) - F_t|^2,  M: random mask

Differs: maps of unequal size are average-pooled to the smaller one; the authors require equal sizes.
"""

from typing import Annotated, Literal

from torch import Tensor, nn

from .adapters import full, same_size
from .base import Batch, Distiller, Output, Pair, Range
from .draws import Draws


class MGD(Distiller, name="mgd"):
    """Generates the teacher's last map from the student's masked one. Squared error, summed over each sample's map.

    The published weight is for ImageNet's maps; for `det` use mgd_share 0.65 and -b 2e-5.

    Args:
        mgd_mask: what is masked: channels (`cls`, classification) or positions (`det`, detection).
        mgd_share: probability that a channel or position is masked.
    """

    weights = (1.0, 0.0, 7e-5)
    reads = ("feats",)

    def __init__(
        self,
        pair: Pair,
        *,
        mgd_share: Annotated[float, Range(float, 0, 1, "[)")] = 0.15,
        mgd_mask: Literal["cls", "det"] = "cls",
    ) -> None:
        super().__init__(pair)
        self.share, self.mask = mgd_share, mgd_mask
        c_s, c_t = (o.feats[-1].shape[1] for o in (pair.s, pair.t))
        self.align = nn.Identity() if c_s == c_t else nn.Conv2d(c_s, c_t, 1)
        self.generation = nn.Sequential(nn.Conv2d(c_t, c_t, 3, padding=1), nn.ReLU(), nn.Conv2d(c_t, c_t, 3, padding=1))
        self.draws = Draws()

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        f_s, f_t = same_size(full(s.feats[-1]), full(t.feats[-1].detach()))
        shape = (f_t.shape[1], 1, 1) if self.mask == "cls" else (1, *f_t.shape[2:])
        return self.generated(f_s, f_t, self.draws.rows(f_s, batch, shape) >= self.share)

    def generated(self, f_s: Tensor, f_t: Tensor, visible: Tensor) -> Tensor:
        """The loss. visible: [B, C, 1, 1] or [B, 1, H, W], False where masked."""
        return (self.generation(self.align(f_s) * visible) - f_t).square().sum() / len(f_s)
