"""Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation. Liu et al., ICCV 2021.
https://arxiv.org/abs/2202.03680

Differs: the form for classification alone, on the last maps. A channel that is zero has no correlation.
"""

from torch import Tensor, nn

from .adapters import BatchNorm, full, unit
from .base import Batch, Distiller, Output, Pair


def correlations(f: Tensor) -> Tensor:
    """Inner products of the channels of each sample, [B, C, C], each row of unit length."""
    rows = f.flatten(2)
    return unit(rows @ rows.mT)


class ICKD(Distiller, name="ickd"):
    """The channels of a map shall be alike as the teacher's are; a convolution brings the student to its number.

    -r 1 -a 0 -b 2.5 is the authors' command for resnet8x4, and -a 1 that with KD.
    """

    weights = (1.0, 0.0, 2.5)
    reads = ("feats",)

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        c_s, c_t = (o.feats[-1].shape[1] for o in (pair.s, pair.t))
        self.embed = nn.Sequential(nn.Conv2d(c_s, c_t, 1, bias=False), BatchNorm(c_t))

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        distance = self.distance(self.embed(full(s.feats[-1])), full(t.feats[-1].detach()))
        return distance * len(batch.labels) / batch.total

    @staticmethod
    def distance(f_s: Tensor, f_t: Tensor) -> Tensor:
        """Squared, by channels and twice by samples, as the authors divide."""
        return (correlations(f_s) - correlations(f_t)).square().sum() / (f_s.shape[1] * len(f_s) ** 2)
