"""LumiNet: Perception-Driven Knowledge Distillation via Statistical Logit Calibration. Hossain et al., 2023.
https://arxiv.org/abs/2310.03669

alpha^2 KL(p_t || p_s),  p = softmax(Z / T),  Z = (z - mean(z)) / std(z) of each class over the batch
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full, kl_rows
from .base import Batch, Distiller, Output, Pair, Temperature, Weight


def perceived(z: Tensor) -> Tensor:
    """Logits standardised to mean 0 and deviation 1, each class over the batch."""
    d = z - z.mean(0)
    return d * (d.square().mean(0) + 1e-5).rsqrt()


class LumiNet(Distiller, name="luminet"):
    """KD between logits that are standardised over the samples, class by class.

    The defaults are resnet8x4's. Use -r 1 --luminet_alpha 75 --luminet_T 8 for wrn_40_1, 70 and 8 for vgg8.

    Args:
        luminet_alpha: square root of the loss's weight.
        luminet_T: temperature of both networks' probabilities.
    """

    weights = (2.0, 0.0, 1.0)
    reads = ()
    standardisable = True
    relational = True
    warm_up = 20

    def __init__(self, pair: Pair, *, luminet_alpha: Weight = 33.0, luminet_T: Temperature = 4.0) -> None:
        super().__init__(pair)
        self.alpha, self.T = luminet_alpha, luminet_T

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        log_s, log_t = (F.log_softmax(perceived(full(z)) / self.T, dim=1) for z in (s.logits, t.logits.detach()))
        return self.alpha**2 * kl_rows(log_s, log_t)
