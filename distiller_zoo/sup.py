"""Label-guided selection for KL distillation: Fantastic Gains and Where to Find Them. Roth et al., ICLR 2024.
https://arxiv.org/abs/2310.17653

sum_i k_i KL_i / sum_i k_i,  k_i: 1 if on_flip selects sample i, else 0
"""

from typing import Annotated

import torch
from torch import Tensor

from .adapters import labels_of
from .base import Batch, Output, Pair, Temperature
from .kl import Classes
from .xekl import XEKL


class Flips:
    """The values of on_flip."""

    def __str__(self) -> str:
        return "three of distill or nothing, at least one of them distill"

    def check(self, value: str) -> None:
        """Raises ValueError for another value."""
        chosen = value.split(",")
        if len(chosen) != 3 or not {"distill"} <= set(chosen) <= {"distill", "nothing"}:
            raise ValueError(f"expected {self}, found {value!r}")


class Sup(XEKL, name="sup"):
    """`xekl`, with KL averaged over the samples that on_flip selects; 0 if it selects none.

    Args:
        on_flip: for samples where only the teacher is right, where only the student is, and for the rest: `distill` or
            `nothing`.
    """

    one_label = True
    relational = True  # the number of selected samples is the whole batch's

    def __init__(
        self,
        pair: Pair,
        *,
        kl_T: Temperature = 1.0,
        kl_k: Classes = 0,
        on_flip: Annotated[str, Flips()] = "distill,nothing,distill",
    ) -> None:
        super().__init__(pair, kl_T=kl_T, kl_k=kl_k)
        self.positive, self.negative, self.neutral = (choice == "distill" for choice in on_flip.split(","))

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        labels = labels_of(s, batch)
        right_s, right_t = s.logits.argmax(1) == labels, t.logits.argmax(1) == labels
        each = self.of_logits(s.logits, t.logits)
        keep = torch.full_like(each, self.neutral)
        keep = keep.masked_fill(right_t & ~right_s, self.positive).masked_fill(right_s & ~right_t, self.negative)
        return (each * keep).sum() / keep.sum().clamp(min=1)
