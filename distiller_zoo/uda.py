"""Unsupervised Data Augmentation for Consistency Training. Xie et al., NeurIPS 2020. https://arxiv.org/abs/1904.12848

Differs, as in https://arxiv.org/abs/1912.10850: no unlabelled data, and no consistency term unless `-b` asks, but
two supervised views of every sample, one of them under AutoAugment, each with cross entropy and KD at temperature 5;
`-r 1 -a 0` leaves out KD, and then needs no teacher. Both views start from the same crop and flip.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dataset import Augment
from dataset.policies import AutoAugment, WeakAndStrong

from .adapters import full
from .base import Batch, Distiller, Output


class UDA(Distiller, name="uda"):
    """Learns from both views; `-b` weighs KL(plain view || augmented view) of the student, the plain one fixed."""

    weights = (0.5, 0.5, 0.0)
    reads = ()
    standardisable = True
    temperature = 5.0

    @classmethod
    def needs_teacher(cls, options: dict[str, Any]) -> bool:
        return False

    def views(self, augment: Augment) -> WeakAndStrong:
        return WeakAndStrong(augment, AutoAugment)

    def forward(self, s: Output, t: Output | None, batch: Batch) -> Tensor:
        """s: [2 B, ...], the plain and the augmented view of a sample side by side. Mean over samples."""
        log_p = F.log_softmax(full(s.logits), dim=1)
        return F.kl_div(log_p[1::2], log_p[::2].detach(), reduction="batchmean", log_target=True)
