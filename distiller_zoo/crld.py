"""Cross-View Consistency Regularisation for Knowledge Distillation. Zhang et al., ACM MM 2024.
https://arxiv.org/abs/2412.16493

within (KD(w, w) + KD(s, s)) + across (KD(s, w) + KD(w, s)),  KD(student's view, teacher's);  w weak, s strong

Differs: the strong view is torchvision's RandAugment(2, 10) with a hole of the mean colour. The authors use FixMatch's
RandAugment (each operation with probability 1/2 at a random strength) and a black hole.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from dataset import Augment
from dataset.policies import RandAugment, WeakAndStrong

from .adapters import full
from .base import Batch, Distiller, Output, Pair, Temperature, Weight
from .kd import kd_each


class CRLD(Distiller, name="crld"):
    """KD within each view and across the two views of a sample.

    Both views have cross entropy, and -r weighs its mean. The first pair of terms counts where the teacher's confidence
    in the weak view is at least 0.9, the second where that in the strong view is at least 0.2.

    Args:
        crld_within: weight of KD within a view.
        crld_across: weight of KD from one view to the other.
        crld_T: temperature of both networks' probabilities.
    """

    weights = (2.0, 0.0, 1.0)
    reads = ()
    standardisable = True
    sure_weak, sure_strong = 0.9, 0.2

    def __init__(
        self, pair: Pair, *, crld_within: Weight = 2.0, crld_across: Weight = 0.5, crld_T: Temperature = 4.0
    ) -> None:
        super().__init__(pair)
        self.within, self.across, self.T = crld_within, crld_across, crld_T

    def views(self, augment: Augment) -> WeakAndStrong:
        return WeakAndStrong(augment, partial(RandAugment, magnitude=10), cutout=True)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        """s, t: [2 B, ...], with the weak and the strong view of a sample side by side."""
        (weak_s, strong_s), (weak_t, strong_t) = ((z[::2], z[1::2]) for z in (full(s.logits), full(t.logits.detach())))
        keep_weak = F.softmax(weak_t, dim=1).amax(1) >= self.sure_weak
        keep_strong = F.softmax(strong_t, dim=1).amax(1) >= self.sure_strong
        within = keep_weak * (kd_each(weak_s, weak_t, self.T) + kd_each(strong_s, strong_t, self.T))
        across = keep_strong * (kd_each(strong_s, weak_t, self.T) + kd_each(weak_s, strong_t, self.T))
        return (self.within * within + self.across * across).mean()
