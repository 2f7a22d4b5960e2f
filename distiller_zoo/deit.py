"""Training Data-Efficient Image Transformers & Distillation through Attention (DeiT). Touvron et al., ICML 2021.
https://arxiv.org/abs/2012.12877

hard: CE(z_dist, argmax z_t);  soft: T^2 KL(p_t || p_dist)

The teacher trains a distillation token with its own head, and labels train the class token. Validation uses the mean of
both heads. Differs: the soft loss is a mean over samples, as in the paper; the authors' code also divides by the number
of classes. Weights and temperature are the paper's; that code's defaults are 0.5 for either loss, and 1.
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full
from .base import Batch, Distiller, Output, Pair, Temperature
from .kd import kd_each


class Distilled(Distiller):
    """Raises ValueError for a student without a distillation head."""

    reads = ()
    separate_heads = True

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        if not pair.s.dist:
            found = type(getattr(pair.student, "net", pair.student)).__name__
            needed = "a student with a distillation token (timm:deit_*_distilled_*)"
            raise ValueError(f"{self.name} needs {needed}, not {found}")


class DeiTHard(Distilled, name="deit_hard"):
    """Cross entropy of the distillation head with the teacher's predicted class."""

    weights = (0.5, 0.0, 0.5)

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_t = full(t.logits.detach())
        # argmax alone would hide a teacher's NaN
        return F.cross_entropy(full(s.dist[0]), z_t.argmax(1), reduction="none") + 0 * z_t.amax(1)


class DeiTSoft(Distilled, name="deit_soft"):
    """T^2 KL(teacher || distillation head).

    Args:
        deit_T: temperature of KD.
    """

    weights = (0.9, 0.0, 0.1)
    standardisable = True

    def __init__(self, pair: Pair, *, deit_T: Temperature = 3.0) -> None:
        super().__init__(pair)
        self.T = deit_T

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return kd_each(s.dist[0], t.logits, self.T)
