"""Label-guided selection for KL distillation: Fantastic Gains and Where to Find Them. Roth et al., ICLR 2024.
https://arxiv.org/abs/2310.17653
"""

import torch
from torch import Tensor

from .adapters import labels_of
from .base import Batch, Output, Pair
from .xekl import XEKL

CHOICES = ("distill", "nothing")


class Sup(XEKL, name="sup"):
    """`xekl` whose KL is the mean over the samples that on_flip lets through, 0 where it lets none.

    on_flip: what becomes of the samples where only the teacher is right, where only the student is, and of the rest.
    Raises ValueError for anything but three of `distill` and `nothing`.
    """

    relational = True  # the number of samples that are let through is the batch's

    def __init__(
        self, pair: Pair, *, kl_T: float = 1.0, kl_k: int = 0, on_flip: str = "distill,nothing,distill"
    ) -> None:
        super().__init__(pair, kl_T=kl_T, kl_k=kl_k)
        chosen = on_flip.split(",")
        if len(chosen) != 3 or not set(chosen) <= set(CHOICES):
            raise ValueError(f"on_flip: expected 3 of {' and '.join(CHOICES)}, found {on_flip!r}")
        self.positive, self.negative, self.neutral = (choice == CHOICES[0] for choice in chosen)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        labels = labels_of(s, batch)
        right_s, right_t = s.logits.argmax(1) == labels, t.logits.argmax(1) == labels
        each = self.each(s.logits, t.logits)
        keep = torch.full_like(each, self.neutral)
        keep = keep.masked_fill(right_t & ~right_s, self.positive).masked_fill(right_s & ~right_t, self.negative)
        return (each * keep).sum() / keep.sum().clamp(min=1)
