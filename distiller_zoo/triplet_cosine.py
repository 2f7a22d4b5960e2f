"""The triplet mode of The State of Knowledge Distillation for Classification, as in its code. Ruffy, Chahal, 2019.
https://arxiv.org/abs/1912.10850

1 - cos(z_s, z_t)
"""

from torch import Tensor

from .adapters import full, unit
from .base import Batch, Distiller, Output


class TripletCosine(Distiller, name="triplet_cosine"):
    """1 - cosine between student's and teacher's logits, without labels. Beside it, KD at temperature 5 (`-a`)."""

    weights = (0.0, 0.5, 0.5)
    reads = ()
    standardisable = True
    temperature = 5.0

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t = unit(full(s.logits)), unit(full(t.logits.detach()))
        return (1 - (z_s * z_t).sum(1)).mean()
