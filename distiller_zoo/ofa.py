"""One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation. Hao et al., NeurIPS 2023.
https://arxiv.org/abs/2310.19444

-sum_k ((p_t + y)^eps - y) log p_s,  y: one-hot label;  summed over branches and the student itself

Differs: branches for convolutional students with any number of stages.
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from .adapters import BatchNorm, full, is_label, labels_of
from .base import Batch, Distiller, Output, Pair, Range, Temperature


def separable(c_in: int, c_out: int) -> list[nn.Module]:
    """Depthwise separable convolutions that halve the map's size and give c_out channels."""
    layers: list[nn.Module] = []
    for stride, out in ((2, c_in), (1, c_out)):
        layers += [nn.Conv2d(c_in, c_in, 3, stride, padding=1, groups=c_in, bias=False)]
        layers += [nn.Conv2d(c_in, out, 1, bias=False), BatchNorm(out), nn.ReLU()]
    return layers


def branch(c_in: int, width: int, deeper: int, classes: int) -> nn.Sequential:
    """A classifier of a stage's map. deeper: number of stages after this one."""
    layers: list[nn.Module] = [] if deeper else [nn.Conv2d(c_in, width, 1)]
    for left in reversed(range(deeper)):
        c_out = 2 * c_in if left else width
        layers += separable(c_in, c_out)
        c_in = c_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def adaptive_target(z_s: Tensor, z_t: Tensor, labels: Tensor, T: float, eps: float) -> Tensor:
    """Cross entropy whose label part grows with the teacher's confidence. Mean over the batch."""
    label = is_label(z_s, labels).to(z_s.dtype)
    target = ((z_t / T).softmax(1) + label).pow(eps) - label
    return -(target * (z_s / T).log_softmax(1)).sum(1).mean()


class OFA(Distiller, name="ofa", aliases=("ofa_kd",)):
    """The teacher's logits are the target for the student and for classifiers that branch off its stages.

    Args:
        ofa_stages: the student's stages with a branch: `1,3`, or `all`.
        ofa_eps: power of 1 + the teacher's probability of the label.
        ofa_T: temperature of all probabilities.

    Raises:
        ValueError: the student does not have such a stage.
    """

    weights = (1.0, 0.0, 1.0)
    one_label = True
    reads = ("feats",)

    def __init__(
        self,
        pair: Pair,
        *,
        ofa_stages: str = "all",
        ofa_eps: Annotated[float, Range(float, 0, 1000, "(]")] = 1.0,
        ofa_T: Temperature = 1.0,
    ) -> None:
        super().__init__(pair)
        n = len(pair.s.feats) - 1
        words = ofa_stages.split(",")
        if ofa_stages != "all" and not all(word.isdecimal() and 1 <= int(word) <= n for word in words):
            raise ValueError(f"ofa_stages: expected some of 1..{n}, or all, found {ofa_stages!r}")
        self.stages = list(range(1, n + 1)) if ofa_stages == "all" else [int(word) for word in words]
        self.T, self.eps = ofa_T, [ofa_eps] * (len(self.stages) + 1)
        width, classes = max(pair.s.pooled.shape[1], pair.t.pooled.shape[1]), pair.t.logits.shape[1]
        self.branches = nn.ModuleList(branch(pair.s.feats[i].shape[1], width, n - i, classes) for i in self.stages)

    def branch_loss(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_t, labels = full(t.logits.detach()), labels_of(s, batch)
        logits = (classify(full(s.feats[i])) for classify, i in zip(self.branches, self.stages, strict=True))
        losses = [adaptive_target(z, z_t, labels, self.T, eps) for z, eps in zip(logits, self.eps, strict=False)]
        return torch.stack(losses).sum()

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        z_t, labels = full(t.logits.detach()), labels_of(s, batch)
        final = adaptive_target(full(s.logits), z_t, labels, self.T, self.eps[-1])
        return self.branch_loss(s, t, batch) + final
