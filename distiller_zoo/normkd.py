"""NormKD: Normalized Logits for Knowledge Distillation. Chi et al., 2023. https://arxiv.org/abs/2308.00520

T_t^2 KL(softmax(z_t / T_t) || softmax(z_s / T_s)),  T_i = normkd_T std(z_i) of each sample

Differs: logits that are constant to within rounding count as having deviation 1.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from .adapters import centred, full, kl_rows, labels_of
from .base import Batch, Distiller, Output, Pair, Temperature, Weight
from .dkd import decoupled


class NormKD(Distiller, name="normkd"):
    """KD whose temperature is normkd_T times the deviation of the sample's logits, for each network.

    For `dkd`, the authors use -r 1 -b 1 --warm_up 20.

    Args:
        normkd_T: temperature of a sample whose logits have deviation 1.
        normkd_form: `kd`, or `dkd`, its two parts.
        normkd_alpha: of `dkd`, weight of the label's part.
        normkd_beta: of `dkd`, weight of the other classes' part.
    """

    weights = (0.1, 0.0, 0.9)
    one_label = True
    reads = ()
    standardisable = True

    def __init__(
        self,
        pair: Pair,
        *,
        normkd_T: Temperature = 2.0,
        normkd_form: Literal["kd", "dkd"] = "kd",
        normkd_alpha: Weight = 4.0,
        normkd_beta: Weight = 5.0,
    ) -> None:
        super().__init__(pair)
        self.T, self.form, self.alpha, self.beta = normkd_T, normkd_form, normkd_alpha, normkd_beta

    def temperature_of(self, z: Tensor) -> Tensor:
        """The samples' temperatures, [B, 1]."""
        return self.T * (centred(z, 1)[1] / max(z.shape[1] - 1, 1)).sqrt()

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t = full(s.logits), full(t.logits.detach())
        T_t = self.temperature_of(z_t)
        z_s, z_t = z_s / self.temperature_of(z_s), z_t / T_t
        if self.form == "kd":
            each = kl_rows(F.log_softmax(z_s, dim=1), F.log_softmax(z_t, dim=1))
        else:
            target, others = decoupled(z_s, z_t, labels_of(s, batch))
            each = self.alpha * target + self.beta * others
        return T_t.squeeze(1).square() * each
