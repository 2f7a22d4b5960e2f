"""Scale Decoupled Distillation. Wei, Luo, Luo, CVPR 2024. https://arxiv.org/abs/2403.13512

Differs: where a classifier reads no mean of a map that the network returns (MobileNetV2, ShuffleNetV2), all regions are
the whole image.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters import ClassifierMap, classify, frozen, kl_rows, labels_of
from .base import Batch, Distiller, Output, Pair, Temperature, Weight
from .dkd import decoupled
from .nkd import other_part, target_part


class SDD(Distiller, name="sdd"):
    """A logit loss between the networks' classifications of the whole map and of its regions; a region that the teacher
    gets right while it errs on the whole, or the reverse, counts twice.

    sdd_cells: the map is cut into so many cells along each side. sdd_form: loss of a region: KD, DKD or NKD (these with
    -r 1 -b 1 --warm_up 20); `nkd_all` as the authors' code, which leaves the label among the other classes. sdd_beta:
    the second weight of DKD and NKD. sdd_T: temperature of all regions' probabilities.
    """

    weights = (0.1, 0.0, 0.9)
    one_label = True

    def __init__(
        self,
        pair: Pair,
        *,
        sdd_form: Literal["kd", "dkd", "nkd", "nkd_all"] = "kd",
        sdd_cells: Literal["1,2", "1,2,4"] = "1,2",
        sdd_T: Temperature = 4.0,
        sdd_beta: Weight = 8.0,
    ) -> None:
        super().__init__(pair)
        self.form, self.T, self.beta = sdd_form, sdd_T, sdd_beta
        self.cells = [int(n) for n in sdd_cells.split(",")]
        self.map_s, self.map_t = ClassifierMap(pair.s), ClassifierMap(pair.t)
        self.reads = tuple({*self.map_s.part, *self.map_t.part})
        self.head_s = (pair.student.head,)  # the student's, and none of this module's
        self.head_t = frozen(pair.teacher.head)

    def regions(self, f: Tensor) -> Tensor:
        """Means over the cells, row by row, the whole first: [B, D, 1, N]."""
        fine = F.adaptive_avg_pool2d(f, 4)
        return torch.cat([F.adaptive_avg_pool2d(fine, n).flatten(2) for n in self.cells], 2).unsqueeze(2)

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s = classify(self.head_s[0], self.regions(self.map_s(s)))
        z_t = classify(self.head_t, self.regions(self.map_t(t).detach()))
        return self.of_regions(z_s.squeeze(2), z_t.squeeze(2), labels_of(s, batch))

    def of_regions(self, z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
        """Loss of each sample, [B], from logits of regions [B, K, N], the first of which is the whole."""
        right = z_t.argmax(1) == labels.unsqueeze(1)
        weight = 1.0 + (right != right[:, :1]).to(z_s.dtype)  # [B, N]
        labels = labels.repeat_interleave(z_s.shape[2])
        z_s, z_t = (z.transpose(1, 2).flatten(0, 1) for z in (z_s, z_t))
        return (weight * self.of_rows(z_s, z_t, labels).view_as(weight)).mean(1)

    def of_rows(self, z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
        """Loss of each row."""
        if self.form == "nkd":
            return target_part(z_s, z_t, labels) + self.beta * other_part(z_s, z_t, labels, self.T)
        if self.form == "dkd":
            target, others = decoupled(z_s / self.T, z_t / self.T, labels)
            return self.T**2 * (target + self.beta * others)
        log_s, log_t = F.log_softmax(z_s / self.T, dim=1), F.log_softmax(z_t / self.T, dim=1)
        if self.form == "kd":
            return self.T**2 * kl_rows(log_s, log_t)
        return target_part(z_s, z_t, labels) - self.beta * self.T**2 * (log_t.exp() * log_s).sum(1)
