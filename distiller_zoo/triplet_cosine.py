"""The triplet mode of The State of Knowledge Distillation for Classification, as its code has it. Ruffy, Chahal, 2019.
https://arxiv.org/abs/1912.10850
"""

from torch import Tensor

from .adapters import full, unit
from .base import Batch, Distiller, Output


class TripletCosine(Distiller, name="triplet_cosine"):
    """1 - cosine between student's and teacher's logits; KD at temperature 5 beside it (`-a`), no labels."""

    weights = (0.0, 0.5, 0.5)
    reads = ()
    standardisable = True
    temperature = 5.0

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t = unit(full(s.logits)), unit(full(t.logits.detach()))
        return (1 - (z_s * z_t).sum(1)).mean()
