"""Paying More Attention to Attention. Zagoruyko, Komodakis, ICLR 2017. https://arxiv.org/abs/1612.03928

sum_l |a_s - a_t|_2,  a as in `at`

The paper's equation; `at` is the authors' code. Differs: one weight for all stages, where the paper has half of 1000 /
(H * W), which is 8 for the last maps of CIFAR's networks.
"""

import torch
from torch import Tensor

from .at import AT


class ATPaper(AT, name="at_paper"):
    """As `at`, but with the L2 norm of the difference, averaged over the batch."""

    weights = (1.0, 0.0, 8.0)

    def difference(self, a_s: Tensor, a_t: Tensor) -> Tensor:
        return torch.linalg.vector_norm(a_s - a_t, dim=1).mean()  # its gradient at zero is zero
