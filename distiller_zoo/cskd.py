"""Regularizing Class-wise Predictions via Self-knowledge Distillation. Yun et al., CVPR 2020.
https://arxiv.org/abs/2003.13964

T^2 KL(p(x') || p(x)),  p: the student's softmax(z / T);  x': another sample of x's class, without a gradient

Differs: a sample and its partner share a batch, and so BatchNorm statistics. The authors run the partners through the
network separately.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dataset.augment import Augment, Steps, Views, columns, parted

from .base import Batch, Distiller, Output, Pair, Temperature
from .kd import kd_loss


class Partners(Views):
    """Each sample beside one of its class (possibly itself): [B, 2, C, H, W], channels_last.

    Args:
        augment: gives the single views.
        labels: [n_data].
    """

    def __init__(self, augment: Augment, labels: Tensor) -> None:
        super().__init__(augment)
        self.labels, size = labels.cpu(), torch.bincount(labels.cpu())
        self.order, self.size, self.start = self.labels.argsort(stable=True), size, size.cumsum(0) - size

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, columns]: both views, and which sample of the class is the partner."""
        views = [self.augment.draw(n, generator) for _ in range(2)]
        return columns(*views, torch.randint(2**31, (n,), generator=generator))

    def stream(self, index: Tensor, view: Tensor, steps: Steps) -> Iterator[Tensor]:
        own = self.labels[index]
        views, number = parted(view, 1)
        partner = self.order[self.start[own] + number.squeeze(1) % self.size[own]]
        both = torch.stack([index, partner], 1).flatten(), views.unflatten(1, (2, -1)).flatten(0, 1).squeeze(1)
        twice = [slice(2 * start, 2 * stop) for start, stop, _ in (step.indices(len(index)) for step in steps)]
        for images in self.augment.stream(*both, twice):
            yield images.unflatten(0, (-1, 2))


class CSKD(Distiller, name="cskd", aliases=("cs_kd",)):
    """Matches the student's softened predictions of two samples of a class.

    No teacher. -b 3 is published for fine-grained classes.

    Args:
        cskd_T: temperature of both predictions.
    """

    weights = (1.0, 0.0, 1.0)
    one_label = True
    reads = ()
    standardisable = True
    label_all_views = False

    def __init__(self, pair: Pair, *, cskd_T: Temperature = 4.0) -> None:
        super().__init__(pair)
        self.T, self.labels = cskd_T, pair.labels

    @classmethod
    def needs_teacher(cls, options: dict[str, Any]) -> bool:
        return False

    def views(self, augment: Augment) -> Partners:
        return Partners(augment, self.labels)

    def forward(self, s: Output, t: Output | None, batch: Batch) -> Tensor:
        """s: [2 B, ...], a sample and its partner side by side. The partner gets no gradient."""
        return kd_loss(s.logits[::2], s.logits[1::2], self.T)
