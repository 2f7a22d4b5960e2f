"""Curriculum Temperature for Knowledge Distillation. Li et al., AAAI 2023. https://arxiv.org/abs/2211.16231

T^2 KL(p_t || p_s),  p = softmax(z / T),  T = start + range * sigmoid(theta);  theta ascends the loss

Differs: only the global temperature; no network predicts one for each sample.
"""

import math
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from .base import Batch, Count, Distiller, Output, Pair, Range, Temperature, Weight
from .kd import kd_each


class CTKD(Distiller, name="ctkd"):
    """KD at a temperature that learns to increase the loss: at first hardly, after ctkd_epochs at full strength.

    Args:
        ctkd_start: lowest temperature.
        ctkd_range: distance from the lowest to the highest temperature.
        ctkd_epochs: epochs until the temperature learns at full strength.
        ctkd_lr: the temperature's learning rate, as a factor of the run's.
    """

    weights = (0.1, 0.0, 0.9)
    reads = ()
    standardisable = True

    def __init__(
        self,
        pair: Pair,
        *,
        ctkd_start: Temperature = 1.0,
        ctkd_range: Annotated[float, Range(float, 0, 1000)] = 20.0,
        ctkd_epochs: Count = 10,
        ctkd_lr: Weight = 1.0,
    ) -> None:
        super().__init__(pair)
        self.lowest, self.range, self.epochs, self.lr = ctkd_start, ctkd_range, ctkd_epochs, ctkd_lr
        self.theta = nn.Parameter(torch.ones(1))

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.theta], "lr_scale": self.lr}]

    @property
    def follows_epoch(self) -> bool:  # type: ignore[override]  # while `reversal` changes
        return self.epoch <= self.epochs

    @property
    def reversal(self) -> float:
        """Factor of the temperature's gradient: falls from 0 to -1."""
        return (math.cos(math.pi * min(self.epoch / self.epochs, 1.0)) - 1) / 2

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        fixed = self.theta.detach()
        theta = fixed + self.reversal * (self.theta - fixed)
        T = self.lowest + self.range * theta.sigmoid()
        return kd_each(s.logits, t.logits, T)
