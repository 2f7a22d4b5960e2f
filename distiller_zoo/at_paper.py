"""Paying More Attention to Attention. Zagoruyko, Komodakis, ICLR 2017. https://arxiv.org/abs/1612.03928

The paper's equation, where `at` is the authors' code: norms of differences, not squares. The paper weighs each by half
of 1000 / (H * W), which is 8 for the last maps of CIFAR's networks; here one weight holds for all stages.
"""

import torch
from torch import Tensor

from .at import AT


class ATPaper(AT, name="at_paper"):
    """As `at`, but the L2 norm of the difference, averaged over the batch."""

    weights = (1.0, 0.0, 8.0)

    def difference(self, a_s: Tensor, a_t: Tensor) -> Tensor:
        return torch.linalg.vector_norm(a_s - a_t, dim=1).mean()  # its gradient at zero is zero
