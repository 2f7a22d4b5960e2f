"""EA-KD: Entropy-based Adaptive Knowledge Distillation. Su et al., ICCV 2025. https://arxiv.org/abs/2311.13621"""

from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor

from .adapters import full, kl_rows, labels_of
from .base import Batch, Distiller, Output, Pair, Range, Temperature, Weight
from .dkd import decoupled


class EAKD(Distiller, name="eakd"):
    """KD in which a sample weighs more the less certain teacher and student are of it.

    eakd_entropy_T: temperature of the entropies. eakd_bound: the entropy that counts as the largest; the authors' code
    has 100 here, which leaves the student little say (the logarithm of the number of classes is the largest there is).
    eakd_form dkd: in two parts as DKD, of weights 1 and eakd_beta; then -r 1 -b 1 --warm_up 20.
    """

    weights = (0.1, 0.0, 0.9)
    one_label = True
    reads = ()

    def __init__(
        self,
        pair: Pair,
        *,
        eakd_T: Temperature = 4.0,
        eakd_entropy_T: Temperature = 3.0,
        eakd_bound: Annotated[float, Range(float, 0, 10**9, "(]")] = 100.0,
        eakd_form: Literal["kd", "dkd"] = "kd",
        eakd_beta: Weight = 8.0,
    ) -> None:
        super().__init__(pair)
        self.T, self.entropy_T, self.bound = eakd_T, eakd_entropy_T, eakd_bound
        self.form, self.beta = eakd_form, eakd_beta

    def entropy(self, z: Tensor) -> Tensor:
        q = F.softmax(z.detach() / self.entropy_T, dim=1)
        floored = (q + 1e-10) if self.form == "kd" else q.clamp_min(1e-10)  # each as the authors write it
        return -(q * floored.log()).sum(1)

    def importance(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """Weight of each sample, [B]."""
        h_s, h_t = self.entropy(z_s), self.entropy(z_t)
        return (h_t + h_t * h_s / self.bound) / 2

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t = full(s.logits), full(t.logits.detach())
        weight = self.importance(z_s, z_t)
        z_s, z_t = z_s / self.T, z_t / self.T
        if self.form == "kd":
            each = kl_rows(F.log_softmax(z_s, dim=1), F.log_softmax(z_t, dim=1))
        else:
            target, others = decoupled(z_s, z_t, labels_of(s, batch))
            each = target + self.beta * others
        return self.T**2 * (weight * each).mean()
