"""Triplet distillation, after The State of Knowledge Distillation for Classification. Ruffy, Chahal, 2019.
https://arxiv.org/abs/1912.10850

max(0, d(z_s, z_t) - d(z_s, z_s') + margin),  z_s': the student's logits of another sample

The survey describes a triplet whose negative is the student's; its code has no negative (`triplet_cosine` is that).
This follows the description. Our choices: distances between logits of unit length, the margin, and which other sample.
"""

from typing import Literal

import torch
from torch import Tensor

from .adapters import full, labels_of, unit
from .base import Batch, Distiller, Output, Pair, Weight


def negatives(labels: Tensor) -> Tensor:
    """For each sample, the next one of another class, cyclically; the next one if all are of one class. [B]"""
    n = len(labels)
    place = torch.arange(n, device=labels.device)
    steps = (place.unsqueeze(0) - place.unsqueeze(1) - 1) % n  # the sample itself comes last
    return torch.where(labels.unsqueeze(0) == labels.unsqueeze(1), steps + n, steps).argmin(1)


class Triplet(Distiller, name="triplet"):
    """The student's logits must be nearer to the teacher's than to its own of another sample.

    Beside it, KD at temperature 5 (`-a`).

    Args:
        triplet_margin: by how much the positive must be nearer than the negative.
        triplet_distance: distance between logits of unit length.
    """

    weights = (0.0, 0.5, 0.5)
    one_label = True
    reads = ()
    standardisable = True
    temperature = 5.0
    relational = True

    def __init__(
        self, pair: Pair, *, triplet_margin: Weight = 0.5, triplet_distance: Literal["cosine", "l2"] = "cosine"
    ) -> None:
        super().__init__(pair)
        self.margin, self.metric = triplet_margin, triplet_distance

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance between rows of unit length, [B]."""
        return 1 - (a * b).sum(1) if self.metric == "cosine" else torch.linalg.vector_norm(a - b, dim=1)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t = unit(full(s.logits)), unit(full(t.logits.detach()))
        other = z_s.detach()[negatives(labels_of(s, batch))]
        return (self.distance(z_s, z_t) - self.distance(z_s, other) + self.margin).relu().mean()
