"""The cross entropy with smoothed, weighted and mixed labels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import parallel


class LabelLoss(nn.Module):
    """Mean over the samples of the cross entropy, as torch defines it for `label_smoothing` and `weight`.

    smoothing: Rethinking the Inception Architecture. Szegedy et al., CVPR 2016. https://arxiv.org/abs/1512.00567
    weights: [K] of the classes, or None; the mean is then over the weights of the samples.
    """

    def __init__(self, smoothing: float = 0.0, weights: Tensor | None = None) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("weights", weights, persistent=False)  # the labels say them

    def forward(self, logits: Tensor, labels: Tensor, mixed: Any = None) -> Tensor:
        """logits [B, K], labels [B]; mixed: a Mixed of B samples, each of which has its share of both losses."""
        weights = None if self.weights is None else self.weights.to(logits.dtype)
        how = {"weight": weights, "label_smoothing": self.smoothing}
        if mixed is None:
            return F.cross_entropy(logits, labels, **how)
        share = mixed.share.to(logits.dtype).unsqueeze(1)
        target = torch.zeros_like(logits).scatter(1, mixed.labels.unsqueeze(1), 1 - share)
        target = target.scatter_add(1, labels.unsqueeze(1), share)
        loss = F.cross_entropy(logits, target, **how, reduction="sum")
        return loss / (len(logits) if self.weights is None else self.total(labels, mixed))

    def total(self, labels: Tensor, mixed: Any = None) -> Tensor:
        """Sum of the samples' weights."""
        own = self.weights[labels]
        if mixed is not None:
            own = torch.lerp(self.weights[mixed.labels], own, mixed.share.to(own.dtype))
        return own.sum()

    def share(self, batch: Any) -> float | Tensor:
        """As `batch.share`, for samples that weigh unequally: of several processes each has its part of the weights."""
        if self.weights is None or batch.whole is None:
            return batch.share
        own = self.total(batch.labels, batch.mixed)
        return own * parallel.world_size() / parallel.all_reduce(own.clone())


def repeated(batch: Any, times: int) -> tuple[Tensor, Any]:
    """Labels and what they are mixed with, for each of so many views of a sample."""
    mixed = batch.mixed and type(batch.mixed)(*(x.repeat_interleave(times) for x in batch.mixed))
    return batch.labels.repeat_interleave(times), mixed


def likelier(batch: Any) -> Tensor:
    """[B] the label of each sample; of a mixed one that with the larger share."""
    if batch.mixed is None:
        return batch.labels
    return torch.where(batch.mixed.share < 0.5, batch.mixed.labels, batch.labels)


def balanced(labels: Tensor, classes: int) -> Tensor:
    """[K] n / (K n_c), whose mean over the samples is 1, as scikit-learn's `class_weight="balanced"`.

    Raises ValueError for a class without samples.
    """
    counts = labels.bincount(minlength=classes)
    if not counts.all():
        raise ValueError(f"class {int(counts.argmin())} has no training sample to be weighed by")
    return (len(labels) / (classes * counts)).float()
