"""Patient Knowledge Distillation for BERT Model Compression. Sun et al., EMNLP 2019. https://arxiv.org/abs/1908.09355

mean((F_s - F_t)^2) over all stage maps together

Differs: stage maps instead of hidden states. As in the survey https://arxiv.org/abs/1912.10850, they are not normalised
(`--pkd_unit` normalises, as the paper). Both refuse maps of unequal shape; here a learned 1x1 convolution adapts the
student's channels, and the larger map is average-pooled.
"""

from torch import Tensor, nn

from .adapters import same_size, stages, unit
from .base import Batch, Distiller, Output, Pair


class PKD(Distiller, name="pkd"):
    """Mean squared error over all elements of all stage maps.

    Args:
        pkd_unit: scale each sample's map to unit length, and sum squared distances over the stages.
    """

    weights = (0.5, 0.5, 10.0)
    reads = ("feats",)
    temperature = 5.0

    def __init__(self, pair: Pair, *, pkd_unit: bool = False) -> None:
        super().__init__(pair)
        self.unit = pkd_unit
        channels = [(f_s.shape[1], f_t.shape[1]) for f_s, f_t in stages(pair.s, pair.t)]
        self.connectors = nn.ModuleList(
            nn.Identity() if c_s == c_t else nn.Conv2d(c_s, c_t, 1) for c_s, c_t in channels
        )

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        square, elements = 0.0, 0
        for connect, (f_s, f_t) in zip(self.connectors, stages(s, t), strict=True):
            f_s, f_t = (f.flatten(1) for f in same_size(connect(f_s), f_t))
            if self.unit:
                f_s, f_t = unit(f_s), unit(f_t)
            square = square + (f_s - f_t).square().sum()
            elements += f_s.shape[1]
        return square / (len(s.logits) * (1 if self.unit else elements))
