"""Revisiting Knowledge Distillation via Label Smoothing Regularization. Yuan et al., CVPR 2020.
https://arxiv.org/abs/1909.11723

self: T^2 KL(p_t || p_s);  reg: KL(softmax(v / T) || softmax(z_s)),  v: the virtual teacher's probabilities

Differs: sums over classes and averages over the batch, as all methods here. The authors' code averages over classes too
and multiplies by 50 (self) or 100 (reg): their alpha is `-r 1-alpha -b alpha*multiplier/classes`.
"""

from typing import Annotated, Any, Literal

import torch.nn.functional as F
from torch import Tensor

from .adapters import full, labels_of
from .base import Batch, Distiller, Output, Pair, Range, Temperature
from .kd import kd_loss


class TFKD(Distiller, name="tfkd"):
    """Teacher-free distillation: from another network of the student's kind, trained alone, or from a virtual teacher.

    As in the authors' code, `reg` applies softmax(. / T) to the virtual teacher's probabilities, not to their
    logarithms; the student has no temperature, and there is no T^2.

    Args:
        tfkd_form: the teacher: `self`, another network of the student's kind, or `reg`, a virtual one.
        tfkd_correct: probability that the virtual teacher gives the label; the others share the rest equally.
        tfkd_T: temperature; default: 1 (self) or 20 (reg).
    """

    weights = (0.9, 0.0, 0.1)
    one_label = True
    reads = ()
    standardisable = True

    def __init__(
        self,
        pair: Pair,
        *,
        tfkd_form: Literal["self", "reg"] = "self",
        tfkd_T: Temperature | None = None,
        tfkd_correct: Annotated[float, Range(float, 0.5, 1)] = 0.99,
    ) -> None:
        super().__init__(pair)
        self.form, self.correct = tfkd_form, tfkd_correct
        self.T = {"self": 1.0, "reg": 20.0}[tfkd_form] if tfkd_T is None else tfkd_T

    @classmethod
    def needs_teacher(cls, options: dict[str, Any]) -> bool:
        return options["tfkd_form"] == "self"

    def forward(self, s: Output, t: Output | None, batch: Batch) -> Tensor:
        if self.form == "self":
            return kd_loss(s.logits, t.logits, self.T)
        z, labels = full(s.logits), labels_of(s, batch).unsqueeze(1)
        others = (1 - self.correct) / (z.shape[1] - 1)
        virtual = z.detach().new_full(z.shape, others).scatter(1, labels, self.correct)
        return F.kl_div(F.log_softmax(z, 1), F.log_softmax(virtual / self.T, 1), reduction="batchmean", log_target=True)
