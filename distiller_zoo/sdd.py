"""Scale Decoupled Distillation. Wei, Luo, Luo, CVPR 2024. https://arxiv.org/abs/2403.13512

mean_r w_r L(z_s[r], z_t[r]),  z[r]: logits of region r of the last map;  w_r: 2 or 1

Differs: if a classifier does not read the mean of a returned map (MobileNetV2, ShuffleNetV2), every region is the whole
image.
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
    """A logit loss on the whole map and on its regions.

    Regions that the teacher classifies right while the whole is wrong, or the reverse, count twice.

    For `dkd` and `nkd` use -r 1 -b 1 --warm_up 20.

    Args:
        sdd_cells: numbers of cells along each side into which the map is cut.
        sdd_form: loss of a region: `kd`, `dkd`, `nkd`, or `nkd_all` as in the authors' code, where the label counts
            among the other classes.
        sdd_beta: second weight of DKD and NKD.
        sdd_T: temperature of all regions' probabilities.
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
        self.head_s = (pair.student.head,)  # a tuple, so that it is not a submodule of this one
        self.head_t = frozen(pair.teacher.head)

    def regions(self, f: Tensor) -> Tensor:
        """Means over the cells, row by row, beginning with the whole map: [B, D, 1, N]."""
        fine = F.adaptive_avg_pool2d(f, 4)
        return torch.cat([F.adaptive_avg_pool2d(fine, n).flatten(2) for n in self.cells], 2).unsqueeze(2)

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s = classify(self.head_s[0], self.regions(self.map_s(s)))
        z_t = classify(self.head_t, self.regions(self.map_t(t).detach()))
        return self.of_regions(z_s.squeeze(2), z_t.squeeze(2), labels_of(s, batch))

    def of_regions(self, z_s: Tensor, z_t: Tensor, labels: Tensor) -> Tensor:
        """Loss of each sample, [B], from logits of regions [B, K, N]. The first region is the whole map."""
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
