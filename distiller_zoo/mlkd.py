"""Multi-level Logit Distillation. Jin, Wang, Lin, CVPR 2023.
https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html

sum_T KD_T + |P_t P_t' - P_s P_s'|^2 / B + |P_t' P_t - P_s' P_s|^2 / K,  P: probabilities [B, K] at temperature T

Differs: the strong view is torchvision's RandAugment(2, 10), whose operations and strengths differ slightly from the
authors'. As in their code, the share of samples (of classes) that are not above the median confidence multiplies the
whole batch's loss, instead of selecting samples, and the strong view has three of the five temperatures.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dataset import Augment
from dataset.policies import RandAugment, WeakAndStrong

from .adapters import full
from .base import Batch, Distiller, Output
from .kd import kd_each


def up_to_median(x: Tensor) -> Tensor:
    """Share of the values [n] that do not exceed their median."""
    ordered, n = x.sort().values, len(x)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return (x <= median).to(x.dtype).mean()


def class_level(p_s: Tensor, p_t: Tensor) -> Tensor:
    """Squared difference of the networks' class correlations over the batch."""
    return (p_t.T @ p_t - p_s.T @ p_s).square().sum() / p_s.shape[1]


def batch_level(p_s: Tensor, p_t: Tensor) -> Tensor:
    """Squared difference of the networks' sample similarities."""
    return class_level(p_s.T, p_t.T)


class MLKD(Distiller, name="mlkd"):
    """KD, relations between samples and relations between classes, each at five temperatures.

    Both views have cross entropy. -r weighs its mean, so 0.2 is the published 0.1 of each view.
    """

    weights = (0.2, 0.0, 0.9)
    reads = ()
    standardisable = True
    relational = True
    temperatures = (4.0, 3.0, 5.0, 2.0, 6.0)
    of_strong = 3  # number of temperatures for the strong view

    def views(self, augment: Augment) -> WeakAndStrong:
        return WeakAndStrong(augment, partial(RandAugment, magnitude=10))

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        """KD. s, t: [2 B, ...], with the weak and the strong view of a sample side by side."""
        z_s, z_t = full(s.logits), full(t.logits.detach())
        kd = [kd_each(z_s, z_t, T).unflatten(0, (-1, 2)) for T in self.temperatures]  # [B, 2] each
        weak, strong = sum(kd)[:, 0], sum(kd[: self.of_strong])[:, 1]
        repeated = sum(kd[self.of_strong :])[:, 0]
        samples = up_to_median(z_t[::2].softmax(1).amax(1))
        return 2 * torch.stack([samples * weak + repeated, strong], 1).flatten()  # 2: the mean is over both views

    def batch_term(self, s: Output, t: Output, batch: Batch) -> Tensor:
        """The relations, of the weak view."""
        z_s, z_t = full(s.logits[::2]), full(t.logits.detach()[::2])
        p_t = z_t.softmax(1)
        samples, classes = up_to_median(p_t.amax(1)), up_to_median(p_t.sum(0))
        loss = 0.0
        for T in self.temperatures:
            p_s, p_t = F.softmax(z_s / T, dim=1), F.softmax(z_t / T, dim=1)
            loss = loss + samples * batch_level(p_s, p_t) + classes * class_level(p_s, p_t)
        return loss
