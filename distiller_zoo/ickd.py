"""Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation. Liu et al., ICCV 2021.
https://arxiv.org/abs/2202.03680

sum |G_s - G_t|^2 / (C B^2),  G = F F' of each sample, [C, C], with rows of unit length

Differs: only the form for classification, on the last maps. A channel that is zero has no correlation.
"""

from torch import Tensor, nn

from .adapters import BatchNorm, full, unit
from .base import Batch, Distiller, Output, Pair


def correlations(f: Tensor) -> Tensor:
    """Inner products of each sample's channels, [B, C, C], with rows of unit length."""
    rows = f.flatten(2)
    return unit(rows @ rows.mT)


class ICKD(Distiller, name="ickd"):
    """Matches the correlations between channels. A convolution maps the student to the teacher's number of channels.

    The authors' command for resnet8x4 is -r 1 -a 0 -b 2.5, or -a 1 with KD.
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
        """Squared distance, divided by the channels and twice by the samples, as in the authors' code."""
        return (correlations(f_s) - correlations(f_t)).square().sum() / (f_s.shape[1] * len(f_s) ** 2)
