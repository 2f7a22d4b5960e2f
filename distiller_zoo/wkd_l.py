"""Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation, on logits. Lv, Yang, Li, NeurIPS
2024. https://arxiv.org/abs/2412.08139

-p_t log p_s of the label + gamma sum_ij P_ij c_ij,  P: optimal transport from q_s to q_t,  q: of the other classes

Differs: the label is masked, not cut out of each sample's cost matrix, so that all samples share matrix products. Costs
come from the classifier's weights, the authors' from the classes' features (CKA). Their weight falls by a cosine after
epoch 150.
"""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from .adapters import full, is_label, labels_of, unit, without
from .base import Batch, Distiller, Output, Pair, Range, Temperature, Weight
from .nkd import target_part


def class_costs(prototypes: Tensor, sharpen: float) -> Tensor:
    """Distances between classes, [K, K], by the angle between their vectors [K, D]."""
    rows = unit(full(prototypes.detach()))
    distance = 1 - rows @ rows.T
    return 1 - (-sharpen * distance).exp() if sharpen else distance


class WKDL(Distiller, name="wkd_l", aliases=("wkd",)):
    """Cost of moving the student's probabilities to the teacher's; similar classes are cheap.

    Optimal transport among the classes other than the label, by Sinkhorn's iteration. The label's part is NKD's.

    The authors use -b 1 and wkd_gamma 30 on ImageNet; on CIFAR-100 600 with wkd_T 8 for resnet8x4, 200 with 6 for
    ShuffleV1.

    Args:
        wkd_gamma: weight of the transport.
        wkd_T: temperature of the transported probabilities.
        wkd_reg: entropic regularisation of the transport: larger values blur more.
        wkd_sharpen: how fast the cost of a class grows with its distance; 0: in proportion.
    """

    weights = (1.0, 0.0, 1.0)
    one_label = True
    reads = ()
    standardisable = True
    iterations = 10

    def __init__(
        self,
        pair: Pair,
        *,
        wkd_gamma: Weight = 30.0,
        wkd_T: Temperature = 8.0,
        wkd_reg: Annotated[float, Range(float, 0, 1000, "(]")] = 0.05,
        wkd_sharpen: Weight = 1.0,
    ) -> None:
        super().__init__(pair)
        self.gamma, self.T, self.reg = wkd_gamma, wkd_T, wkd_reg
        self.register_buffer("cost", F.relu(class_costs(pair.teacher.head.weight, wkd_sharpen)) + 1e-8)

    def transport(self, a: Tensor, b: Tensor, open_: Tensor) -> Tensor:
        """Cost of moving a to b, [B]: probabilities [B, K], 0 where not `open_`."""
        kernel = (-self.cost / self.reg).exp().to(a.dtype)
        u = open_ / open_.sum(1, keepdim=True)
        for _ in range(self.iterations):
            v = b / (u @ kernel + 1e-8)
            u = a / (v @ kernel.T + 1e-8)
        return (u @ (kernel * self.cost.to(a.dtype)) * v).sum(1)

    def per_sample(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_s, z_t, labels = full(s.logits), full(t.logits.detach()), labels_of(s, batch)
        own = is_label(z_s, labels)
        a, b = (without(z / self.T, own).softmax(1) for z in (z_s, z_t))
        moved = self.transport(a, b, (~own).to(a.dtype))
        return target_part(z_s, z_t, labels) + self.gamma * moved
