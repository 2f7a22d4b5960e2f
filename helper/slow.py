"""Weights that follow the trained ones slowly.

Momentum-based Weight Interpolation of Strong Zero-Shot Models for Continual Learning. Stojanovski, Roth, Akata 2022.
https://arxiv.org/abs/2211.03186
"""

import copy

import torch
from torch import Tensor, nn


class SlowWeights:
    """`network` is a copy of the student that moves by slow <- tau * slow + (1 - tau) * student every `every` steps.

    BatchNorm statistics move likewise, counters are copied; the student trains on as if there were no copy.
    `fast`: where the student goes on from when `network` has its weights, those of a run that had both.
    """

    def __init__(self, student: nn.Module, tau: float, every: int = 1, fast: dict[str, Tensor] | None = None) -> None:
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.tau, self.every, self.fast = tau, every, fast

    def restart(self, student: nn.Module) -> None:
        self.network.load_state_dict(student.state_dict())
        if self.fast:
            student.load_state_dict(self.fast)

    @torch.no_grad()
    def update(self, student: nn.Module, step: int) -> None:
        """step: of the whole training, from 1."""
        if step % self.every:
            return
        # a compiled network's keys have a prefix, so pairs are by order
        pairs = list(zip(self.network.state_dict().values(), student.state_dict().values(), strict=True))
        moving = [(slow, fast) for slow, fast in pairs if slow.is_floating_point()]
        torch._foreach_lerp_([slow for slow, _ in moving], [fast for _, fast in moving], 1 - self.tau)
        for slow, fast in pairs:
            if not slow.is_floating_point():
                slow.copy_(fast)
