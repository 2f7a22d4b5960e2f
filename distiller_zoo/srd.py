"""Understanding the Role of the Projector in Knowledge Distillation. Miles, Mikolajczyk, AAAI 2024.
https://arxiv.org/abs/2303.11098

Differs: where student and teacher agree, the logarithm stops at that of 1e-12.
"""

from typing import Annotated

from torch import Tensor, nn

from .adapters import full
from .base import Batch, Distiller, Output, Pair, Range


def normalised(x: Tensor) -> Tensor:
    """As BatchNorm without parameters does."""
    d = x - x.mean(0)
    return d * (d.square().mean(0) + 1e-4).rsqrt()


class SRD(Distiller, name="srd"):
    """The logarithm of the distance between the batch's normalised pooled features, the student's projected, to the
    power srd_exponent; beside KD at temperature 1.

    srd_exponent: power of each difference of two features.
    """

    weights = (1.0, 1.0, 2.0)
    reads = ()
    relational = True
    temperature = 1.0

    def __init__(self, pair: Pair, *, srd_exponent: Annotated[float, Range(float, 0, 100, "(]")] = 4.0) -> None:
        super().__init__(pair)
        self.exponent = srd_exponent
        self.project = nn.Linear(pair.s.pooled.shape[1], pair.t.pooled.shape[1])

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        difference = normalised(self.project(full(s.pooled))) - normalised(full(t.pooled.detach()))
        return difference.abs().pow(self.exponent).sum().clamp_min(1e-12).log()
