"""Understanding the Role of the Projector in Knowledge Distillation. Miles, Mikolajczyk, AAAI 2024.
https://arxiv.org/abs/2303.11098

log sum |norm(W f_s) - norm(f_t)|^srd_exponent,  norm: BatchNorm without parameters

Differs: the sum is at least 1e-12, for networks that agree.
"""

from typing import Annotated

from torch import Tensor, nn

from .adapters import full
from .base import Batch, Distiller, Output, Pair, Range


def normalised(x: Tensor) -> Tensor:
    """BatchNorm without parameters."""
    d = x - x.mean(0)
    return d * (d.square().mean(0) + 1e-4).rsqrt()


class SRD(Distiller, name="srd"):
    """Logarithm of the distance between normalised pooled features, the student's projected.

    Beside it, KD at temperature 1.

    Args:
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
