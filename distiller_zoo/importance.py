"""Sample weights of EA-KD: Entropy-based Adaptive Knowledge Distillation. Su et al., ICCV 2025.
https://arxiv.org/abs/2311.13621

w = (H_t + H_t H_s / bound) / 2,  H: entropy of softmax(z / T)

`--ea_weights` applies them to KD and to every method that has `Distiller.per_sample`.
"""

import torch.nn.functional as F
from torch import Tensor

from .adapters import full


def entropy(z: Tensor, T: float, clamped: bool = False) -> Tensor:
    """Entropy of softmax(z / T) for each sample, [B], from logits [B, K]. No gradient.

    clamped: probabilities in the logarithm are at least 1e-10, as in the authors' DKD; otherwise 1e-10 is added to
    them.
    """
    q = F.softmax(full(z.detach()) / T, dim=1)
    return -(q * (q.clamp_min(1e-10) if clamped else q + 1e-10).log()).sum(1)


def importance(h_s: Tensor, h_t: Tensor, bound: float) -> Tensor:
    """Weight of each sample, [B], from the entropies of student and teacher. bound: the entropy that counts as the
    largest.
    """
    return (h_t + h_t * h_s / bound) / 2
