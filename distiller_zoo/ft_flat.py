"""Paraphrasing Complex Network: Network Compression via Factor Transfer. Kim, Park, Kwak, NeurIPS 2018.
https://arxiv.org/abs/1802.04977

mean |a_s - a_t|,  a = u / |u|,  u: all values of a factor

The paper's comparison of whole factors; `ft` averages them over channels. As torchdistill trains it on ImageNet: no
BatchNorm in translator and paraphraser, and one epoch for the latter.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapters import same_size, unit
from .base import Pair
from .ft import FT, Ratio


class FTFlat(FT, name="ft_flat"):
    """As `ft`, but each factor is flattened over channels and space, and scaled to unit length.

    Args:
        ft_flat_norm: `l1`, the mean absolute difference of all elements, or `l2`, the samples' mean distance.
    """

    weights = (1.0, 0.0, 1000.0)
    init_epochs = 1
    translator_norm = False

    def __init__(self, pair: Pair, *, ft_k: Ratio = 0.5, ft_flat_norm: Literal["l1", "l2"] = "l1") -> None:
        super().__init__(pair, ft_k=ft_k)
        self.flat_norm = ft_flat_norm

    def factor_loss(self, factor_s: Tensor, factor_t: Tensor) -> Tensor:
        a_s, a_t = (unit(f.flatten(1)) for f in same_size(factor_s, factor_t))
        if self.flat_norm == "l1":
            return F.l1_loss(a_s, a_t)
        return torch.linalg.vector_norm(a_s - a_t, dim=1).mean()  # its gradient at zero is zero
