"""Knowledge Distillation with Refined Logits. Sun et al., ICCV 2025. https://arxiv.org/abs/2408.07703

alpha T_l^2 KL((max p_t, 1 - max p_t) || (p_s, 1 - p_s) of the label) + beta T^2 KL(q_t || q_s)
q: softmax(z / T) over the classes that the teacher ranks below the label

Differs: computed from log-probabilities, so that a student that is certain has a finite loss and gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters import full, is_label, kl_rows, labels_of, without
from .base import Batch, Distiller, Output, Pair, Temperature, Weight


def one_and_rest(z: Tensor, one: Tensor) -> Tensor:
    """Log-probabilities of the class `one` [B] and of all others together, [B, 2]."""
    mask = is_label(z, one)
    parts = [without(z, dropped).logsumexp(1) for dropped in (~mask, mask)]
    return F.log_softmax(torch.stack(parts, 1), dim=1)


class RLD(Distiller, name="rld"):
    """The student's confidence in the label matches the teacher's in its predicted class.

    Among the classes that the teacher ranks below the label, the student matches the teacher. So it does not learn the
    teacher's errors.

    With `--standardise` the authors use both temperatures 2 and -b 9.

    Args:
        rld_alpha: weight of the label's part.
        rld_beta: weight of the other classes' part.
        rld_T: temperature of the other classes' part.
        rld_label_T: temperature of the label's part, as in the authors' command; their program's own is 1.
    """

    weights = (1.0, 0.0, 1.0)
    one_label = True
    reads = ()
    standardisable = True
    warm_up = 20

    def __init__(
        self,
        pair: Pair,
        *,
        rld_alpha: Weight = 1.0,
        rld_beta: Weight = 8.0,
        rld_T: Temperature = 4.0,
        rld_label_T: Temperature = 4.0,
    ) -> None:
        super().__init__(pair)
        self.alpha, self.beta, self.T, self.label_T = rld_alpha, rld_beta, rld_T, rld_label_T

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t, labels = full(s.logits), full(t.logits.detach()), labels_of(s, batch)
        log_s, log_t = one_and_rest(z_s / self.label_T, labels), one_and_rest(z_t / self.label_T, z_t.argmax(1))
        confidence = self.label_T**2 * kl_rows(log_s, log_t)
        dropped = z_t >= z_t.gather(1, labels.unsqueeze(1))  # if it drops all classes, both networks are uniform
        log_s, log_t = (F.log_softmax(without(z / self.T, dropped), dim=1) for z in (z_s, z_t))
        return self.alpha * confidence + self.beta * self.T**2 * kl_rows(log_s, log_t)
