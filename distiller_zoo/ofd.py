"""A Comprehensive Overhaul of Feature Distillation. Heo et al., ICCV 2019. https://arxiv.org/abs/1904.01866

sum_l 2^(l - n) |r(g_s) - t|^2,  t = max(g_t, margin), except where r(g_s) <= t <= 0;  g: pre-activations

Differs: the teacher stays in eval mode (the authors' keeps using batch statistics); maps of unequal size are
average-pooled; a teacher without BatchNorm before its ReLUs (ShuffleNet) has margin -1 everywhere.
"""

import math

import torch
from torch import Tensor, nn

from .adapters import BatchNorm, full, pair_maps, same_size
from .base import Batch, Distiller, Output, Pair


def margins(bn: nn.BatchNorm2d) -> Tensor:
    """Mean negative response of each channel, [C], of a normal variable with the BatchNorm's shift and scale.

    A channel whose probability of being negative is below 0.001 gets -3 times the scale.
    """
    mean, scale = bn.bias.detach().double(), bn.weight.detach().double().abs()
    z = mean / scale.clamp_min(1e-12)
    negative = 0.5 * torch.erfc(z / math.sqrt(2))
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    below = mean - scale * density / negative.clamp_min(1e-3)
    return torch.where(negative > 1e-3, below, -3 * scale).to(bn.weight.dtype)


def partial_l2(s: Tensor, t: Tensor, margin: Tensor) -> Tensor:
    """Sum over all elements of (s - max(t, margin))^2, except where s <= max(t, margin) <= 0."""
    t = t.maximum(margin.view(-1, 1, 1))
    return ((s - t).square() * ((s > t) | (t > 0))).sum()


class OFD(Distiller, name="ofd", aliases=("oh", "overhaul", "margin_relu")):
    """Student pre-activations, after a 1x1 convolution and BatchNorm, imitate the teacher's above its margins.

    Sums over elements, averages over samples. The last stage has weight 1, each earlier one half the next.
    """

    weights = (1.0, 0.0, 1e-3)
    reads = ("preacts",)

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        pairs = pair_maps(pair.s.preacts[1:], pair.t.preacts[1:])
        self.connectors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(g_s.shape[1], g_t.shape[1], 1, bias=False), BatchNorm(g_t.shape[1]))
            for g_s, g_t in pairs
        )
        for conv, _ in self.connectors:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        try:
            found = [margins(bn) for bn in pair.teacher.get_bn_before_relu()[-len(pairs) :]]
        except ValueError:
            found = [-torch.ones(g_t.shape[1]) for _, g_t in pairs]
        for i, margin in enumerate(found):
            self.register_buffer(f"margin{i}", margin)

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        total = 0.0
        pairs = pair_maps(s.preacts[1:], t.preacts[1:])
        for i, (connect, (g_s, g_t)) in enumerate(zip(self.connectors, pairs, strict=True)):
            g_s, g_t = same_size(connect(full(g_s)), full(g_t.detach()))
            total = total / 2 + partial_l2(g_s, g_t, self.get_buffer(f"margin{i}"))
        return total / len(s.logits)
