"""Unsupervised Data Augmentation for Consistency Training. Xie et al., NeurIPS 2020. https://arxiv.org/abs/1904.12848

KL(p(x) || p(x')),  p: the student's;  x: plain view, without a gradient;  x': augmented view

Differs, as in https://arxiv.org/abs/1912.10850: no unlabelled data, and this term only if `-b` is given. Instead, each
sample has two supervised views, one under AutoAugment, each with cross entropy and KD at temperature 5. `-r 1 -a 0`
omits KD, and needs no teacher. Both views share crop and flip.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from dataset import Augment
from dataset.policies import AutoAugment, WeakAndStrong

from .adapters import full
from .base import Batch, Distiller, Output


class UDA(Distiller, name="uda"):
    """Supervised training on both views; `-b` weighs the consistency term."""

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
