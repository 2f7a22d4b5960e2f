"""EA-KD: Entropy-based Adaptive Knowledge Distillation. Su et al., ICCV 2025. https://arxiv.org/abs/2311.13621

w T^2 KL(p_t || p_s),  w = (H_t + H_t H_s / bound) / 2,  H: entropy of softmax(z / eakd_entropy_T)
"""

from typing import Annotated, Literal

from torch import Tensor

from .base import Batch, Distiller, Output, Pair, Range, Temperature, Weight
from .dkd import DKD
from .importance import entropy, importance
from .kd import KD


class EAKD(Distiller, name="eakd"):
    """KD that weights uncertain samples more, as `--ea_weights` does. For `dkd`, use -r 1 -b 1 --warm_up 20.

    Args:
        eakd_T: temperature of KD.
        eakd_entropy_T: temperature of the entropies.
        eakd_bound: entropy that counts as the largest. The true maximum is the logarithm of the number of classes; the
            authors' code has 100, so the student has little influence.
        eakd_form: `kd`, or `dkd`, its two parts.
        eakd_beta: of `dkd`, weight of the other classes' part.
    """

    weights = (0.1, 0.0, 0.9)
    one_label = True
    reads = ()
    standardisable = True

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
        self.entropy_T, self.bound, self.clamped = eakd_entropy_T, eakd_bound, eakd_form == "dkd"
        self.inner = DKD(pair, dkd_beta=eakd_beta, dkd_T=eakd_T) if self.clamped else KD(pair, kd_T=eakd_T)

    def importance(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        """Weight of each sample, [B]."""
        return importance(*(entropy(z, self.entropy_T, self.clamped) for z in (z_s, z_t)), self.bound)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return (self.importance(s.logits, t.logits) * self.inner.per_sample(s, t, batch)).mean()
