"""KL distillation between trained networks: Fantastic Gains and Where to Find Them. Roth et al., ICLR 2024.
https://arxiv.org/abs/2310.17653

T^2 KL(p_t || p_s),  p = softmax(z / T) over the teacher's k likeliest classes

For a student that is trained already (`--path_s`): no labels, temperature 1, a small learning rate.
"""

from typing import Annotated

from torch import Tensor

from .base import Batch, Distiller, Output, Pair, Range, Temperature
from .kd import kd_each

Classes = Annotated[int, Range(int, 2, 2**24, besides=0)]  # a single class would have probability 1 in both networks


class KL(Distiller, name="kl"):
    """KD on the classes that the teacher finds likeliest for each sample.

    Args:
        kl_T: temperature of both networks' probabilities.
        kl_k: number of classes; 0, or more than the data set has: all.
    """

    weights = (0.0, 0.0, 1.0)
    reads = ()
    standardisable = True

    def __init__(self, pair: Pair, *, kl_T: Temperature = 1.0, kl_k: Classes = 0) -> None:
        super().__init__(pair)
        self.T, self.k = kl_T, kl_k

    def of_logits(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """The loss of each sample, [B], from logits [B, K]."""
        if 0 < self.k < z_t.shape[1]:
            z_t, classes = z_t.detach().topk(self.k, dim=1)
            z_s = z_s.gather(1, classes)
        return kd_each(z_s, z_t, self.T)

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return self.of_logits(s.logits, t.logits)
