"""Several teachers: the ensemble mode of The State of Knowledge Distillation for Classification. Ruffy, Chahal, 2019.
https://arxiv.org/abs/1912.10850

mean_i T^2 KL(p_i || p_s),  p_i: teacher i's softmax(z / T)

Choosing one teacher for each sample: Fantastic Gains and Where to Find Them. Roth et al., ICLR 2024.
https://arxiv.org/abs/2310.17653
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .adapters import full, labels_of
from .base import Batch, Distiller, Output, Pair, Temperature
from .kd import kd_loss


def confidence(z: Tensor, labels: Tensor | None) -> Tensor:
    """Probability of the label, or, without labels, of the likeliest class: logits [..., B, K] -> [..., B]."""
    p = full(z).softmax(-1)
    return p.amax(-1) if labels is None else p.gather(-1, labels.expand(p.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def most_confident(logits: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    """For each sample, the logits of the most confident network (the first if equal), [B, K]."""
    z = torch.stack([full(x.detach()) for x in logits])
    return z[confidence(z, labels).argmax(0), torch.arange(z.shape[1], device=z.device)]


class MT(Distiller, name="mt", aliases=("multikd",)):
    """The mean of the teachers' KD losses, or KD from one teacher for each sample.

    Args:
        mt_T: temperature of all probabilities.
        mt_choice: `mean`, or the teacher with the highest probability for the label (`most-conf`) or for any class
            (`most-conf_u`, no labels needed).
    """

    weights = (0.5, 0.0, 0.5)
    one_label = True
    reads = ()
    standardisable = True
    temperature = 5.0
    all_teachers = True

    def __init__(
        self, pair: Pair, *, mt_T: Temperature = 5.0, mt_choice: Literal["mean", "most-conf", "most-conf_u"] = "mean"
    ) -> None:
        super().__init__(pair)
        self.T, self.choice = mt_T, mt_choice

    def forward(self, s: Output, t: Sequence[Output], batch: Batch) -> Tensor:
        if self.choice == "mean":
            return sum(kd_loss(s.logits, x.logits, self.T) for x in t) / len(t)
        labels = labels_of(s, batch) if self.choice == "most-conf" else None
        return kd_loss(s.logits, most_confident([x.logits for x in t], labels), self.T)
