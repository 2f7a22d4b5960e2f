"""EA-KD: Entropy-based Adaptive Knowledge Distillation. Su et al., ICCV 2025. https://arxiv.org/abs/2311.13621"""

from typing import Annotated, Literal

from torch import Tensor

from .base import Batch, Distiller, Output, Pair, Range, Temperature, Weight
from .dkd import DKD
from .importance import entropy, importance
from .kd import KD


class EAKD(Distiller, name="eakd"):
    """KD in which a sample weighs more the less certain teacher and student are of it, as with `--ea_weights`.

    eakd_T: temperature of KD. eakd_entropy_T: temperature of the entropies. eakd_bound: the entropy that counts as the
    largest; the authors' code has 100 here, which leaves the student little say (the logarithm of the number of classes
    is the largest there is). eakd_form: `kd`, or `dkd`: in two parts as DKD, then -r 1 -b 1 --warm_up 20. eakd_beta: of
    `dkd`, the weight of the other classes' part.
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
