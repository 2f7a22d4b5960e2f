"""The sample weights of EA-KD: Entropy-based Adaptive Knowledge Distillation. Su et al., ICCV 2025.
https://arxiv.org/abs/2311.13621

`--ea_weights` puts them on KD and on every method that has a loss of each sample (`Distiller.per_sample`).
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full


def entropy(z: Tensor, T: float, clamped: bool = False) -> Tensor:
    """Of softmax(z / T) of each sample, [B], from logits [B, K], without a gradient.

    clamped: 1e-10 is the least probability in the logarithm, as in the authors' DKD, and is not added to it.
    """
    q = F.softmax(full(z.detach()) / T, dim=1)
    return -(q * (q.clamp_min(1e-10) if clamped else q + 1e-10).log()).sum(1)


def importance(h_s: Tensor, h_t: Tensor, bound: float) -> Tensor:
    """Weight of each sample from the student's and the teacher's entropies, [B]. bound: what counts as the largest."""
    return (h_t + h_t * h_s / bound) / 2
