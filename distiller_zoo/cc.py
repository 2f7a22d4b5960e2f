"""Correlation Congruence for Knowledge Distillation. Peng et al., ICCV 2019. https://arxiv.org/abs/1904.01802

sum_i |e_s - e_t|_i . |e_s - e_t|_(i+1) / (B - 1),  e: linear embeddings of the pooled features of sample i

As in RepDistiller, neighbours in the batch are compared, so the value depends on the batch's order, and the teacher's
embedding is trained too. The paper compares all samples through a kernel: `--cc_kernel` does so, on embeddings of unit
length, with the paper's expansion of the Gaussian kernel.
"""

import math
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from .adapters import full, unit
from .base import Batch, Distiller, Output, Pair, Range, Width


class CC(Distiller, name="cc", aliases=("correlation",)):
    """Products of neighbouring samples' embedding differences, or differences between kernels of all samples.

    Args:
        feat_dim: width of the embeddings.
        cc_kernel: `none`, or the loss is the norm of the difference of the networks' kernel matrices, over B^2.
        cc_gamma: factor in the Gaussian kernel exp(-gamma |x - y|^2).
        cc_order: highest power in the Gaussian kernel's expansion. The default weight is for `none`.
    """

    weights = (1.0, 0.0, 0.02)
    reads = ()
    relational = True

    def __init__(
        self,
        pair: Pair,
        *,
        feat_dim: Width = 128,
        cc_kernel: Literal["none", "gaussian", "bilinear"] = "none",
        cc_gamma: Annotated[float, Range(float, 0.001, 5)] = 0.4,
        cc_order: Annotated[int, Range(int, 1, 100)] = 2,
    ) -> None:
        super().__init__(pair)
        self.kernel, self.gamma, self.order = cc_kernel, cc_gamma, cc_order
        self.embed_s = nn.Linear(pair.s.pooled.shape[1], feat_dim)
        self.embed_t = nn.Linear(pair.t.pooled.shape[1], feat_dim)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        e_s, e_t = self.embed_s(full(s.pooled)), self.embed_t(full(t.pooled.detach()))
        if self.kernel != "none":
            return self.kernel_loss(unit(e_s), unit(e_t))
        delta = (e_s - e_t).abs()
        return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)  # a single sample has no neighbour: 0

    def kernel_loss(self, e_s: Tensor, e_t: Tensor) -> Tensor:
        """The kernels' distance, from embeddings [B, feat_dim]."""
        k_s, k_t = (self.between(e @ e.T) for e in (e_s, e_t))
        return torch.linalg.vector_norm(k_s - k_t) / len(e_s) ** 2  # its gradient at zero is zero

    def between(self, dots: Tensor) -> Tensor:
        """The kernel as a function of inner products. The Gaussian's formula holds for vectors of unit length."""
        if self.kernel == "bilinear":
            return dots
        terms = ((2 * self.gamma) ** p / math.factorial(p) * dots**p for p in range(self.order + 1))
        return math.exp(-2 * self.gamma) * sum(terms)
