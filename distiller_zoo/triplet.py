"""Triplet distillation, after The State of Knowledge Distillation for Classification. Ruffy, Chahal, 2019.
https://arxiv.org/abs/1912.10850

The survey describes a triplet with the student as the negative; its code has no negative (`triplet_cosine` is that).
Ours is the description's: the student's logits of a sample must be nearer to the teacher's of that sample than to the
student's own of another one. Choices: distances between logits of unit length, margin, and which other sample.
"""

from typing import Literal

import torch
from torch import Tensor

from .adapters import full, labels_of, unit
from .base import Batch, Distiller, Output, Pair, Weight


def negatives(labels: Tensor) -> Tensor:
    """For each sample the next one of another class, around the batch's end; without one the next one. [B]"""
    n = len(labels)
    place = torch.arange(n, device=labels.device)
    steps = (place.unsqueeze(0) - place.unsqueeze(1) - 1) % n  # a sample itself is the last to be asked
    return torch.where(labels.unsqueeze(0) == labels.unsqueeze(1), steps + n, steps).argmin(1)


class Triplet(Distiller, name="triplet"):
    """Hinge of distance to the positive - distance to the negative + margin; KD at temperature 5 beside it (`-a`).

    triplet_margin: by how much nearer the positive must be than the negative. triplet_distance: how distance is
    measured between logits of unit length.
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
        """Between rows of unit length, [B]."""
        return 1 - (a * b).sum(1) if self.metric == "cosine" else torch.linalg.vector_norm(a - b, dim=1)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t = unit(full(s.logits)), unit(full(t.logits.detach()))
        other = z_s.detach()[negatives(labels_of(s, batch))]
        return (self.distance(z_s, z_t) - self.distance(z_s, other) + self.margin).relu().mean()
