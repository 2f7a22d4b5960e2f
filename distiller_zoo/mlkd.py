"""Multi-level Logit Distillation. Jin, Wang, Lin, CVPR 2023.
https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html

Differs: the RandAugment(2, 10) of the strong view is torchvision's, of which the operations and strengths are not quite
the authors'. As in their code, the share of samples, and of classes, that the teacher is less sure of than of the
median one is a factor of a batch's loss, in the place of a choice among them, and the strong view has three of the five
temperatures.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from dataset import Augment
from dataset.policies import RandAugment, WeakAndStrong

from .adapters import full
from .base import Batch, Distiller, Output
from .kd import kd_loss


def up_to_median(x: Tensor) -> Tensor:
    """The share of the values [n] that do not exceed their median."""
    ordered, n = x.sort().values, len(x)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return (x <= median).to(x.dtype).mean()


def class_level(p_s: Tensor, p_t: Tensor) -> Tensor:
    """How the classes correlate over the batch."""
    return (p_t.T @ p_t - p_s.T @ p_s).square().sum() / p_s.shape[1]


def batch_level(p_s: Tensor, p_t: Tensor) -> Tensor:
    """How the samples are alike."""
    return class_level(p_s.T, p_t.T)


class MLKD(Distiller, name="mlkd"):
    """KD of each sample, the relations of the samples and those of the classes, each at five temperatures.

    Both views are labelled; the published weight 0.1 is each view's, and -r that of their mean.
    """

    weights = (0.2, 0.0, 0.9)
    reads = ()
    relational = True
    temperatures = (4.0, 3.0, 5.0, 2.0, 6.0)
    of_strong = 3  # so many of these

    def views(self, augment: Augment) -> WeakAndStrong:
        return WeakAndStrong(augment, partial(RandAugment, magnitude=10))

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        """s, t: [2 B, ...], the weak and the strong view of a sample side by side."""
        (weak_s, strong_s), (weak_t, strong_t) = ((z[::2], z[1::2]) for z in (full(s.logits), full(t.logits.detach())))
        p_t = weak_t.softmax(1)
        samples, classes = up_to_median(p_t.amax(1)), up_to_median(p_t.sum(0))
        loss = 0.0
        for i, T in enumerate(self.temperatures):
            kd = kd_loss(weak_s, weak_t, T)
            p_s, p_t = F.softmax(weak_s / T, dim=1), F.softmax(weak_t / T, dim=1)
            loss = loss + samples * (kd + batch_level(p_s, p_t)) + classes * class_level(p_s, p_t)
            loss = loss + (kd_loss(strong_s, strong_t, T) if i < self.of_strong else kd)
        return loss
