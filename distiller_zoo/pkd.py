"""Patient Knowledge Distillation for BERT Model Compression. Sun et al., EMNLP 2019. https://arxiv.org/abs/1908.09355

Differs: stage maps in the place of hidden states. As in the survey https://arxiv.org/abs/1912.10850 they are neither
normalised (`--pkd_unit` does, as the paper) nor changed in shape. Maps of unequal shapes, which both refuse: a learned
1x1 convolution brings the student's channels to the teacher's number, and the larger map is average-pooled.
"""

from torch import Tensor, nn

from .adapters import same_size, stages, unit
from .base import Batch, Distiller, Output, Pair


class PKD(Distiller, name="pkd"):
    """Mean squared error over all elements of all stage maps together.

    pkd_unit: each map of each sample has unit length, and squared distances are summed over the stages.
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
