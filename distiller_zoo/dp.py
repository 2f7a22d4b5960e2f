"""KL distillation with data partitioning: Fantastic Gains and Where to Find Them. Roth et al., ICLR 2024.
https://arxiv.org/abs/2310.17653

T^2 KL(p_c || p_s),  c: for each sample, a teacher or the student before this training

For a student that is trained already (`--path_s`).
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .adapters import beside, labels_of
from .base import Batch, Output, Pair, Temperature
from .kl import KL, Classes
from .mt import most_confident


class DP(KL, name="dp"):
    """`kl` towards a teacher or the initial student, chosen for each sample.

    Of several teachers, the most confident one counts.

    Args:
        dp_strategy: `most-conf`, the one with the higher probability for the label, the initial student if equal;
            `most-conf_u`, the same for any class; `flip-st`, the teacher where only it is right; `flip-t`, the initial
            student where only it is right; `flip-avg`, the mean of both logits where the predictions differ, else the
            teacher's; `self-dist`, the initial student everywhere.
    """

    one_label = True
    trained_student = True
    all_teachers = True

    def __init__(
        self,
        pair: Pair,
        *,
        kl_T: Temperature = 1.0,
        kl_k: Classes = 0,
        dp_strategy: Literal["most-conf", "most-conf_u", "flip-st", "flip-t", "flip-avg", "self-dist"] = "most-conf",
    ) -> None:
        super().__init__(pair, kl_T=kl_T, kl_k=kl_k)
        self.strategy = dp_strategy
        self.start = copy.deepcopy(pair.student).requires_grad_(False).eval()

    @classmethod
    def needs_teacher(cls, options: dict[str, Any]) -> bool:
        return options["dp_strategy"] != "self-dist"

    def train(self, mode: bool = True) -> "DP":
        super().train(mode)
        self.start.eval()
        return self

    def forward(self, s: Output, t: Sequence[Output], batch: Batch) -> Tensor:
        with torch.no_grad():
            z_start = beside(self.start, batch.images, s)
        return self.of_logits(s.logits, self.choose(z_start, [x.logits for x in t], labels_of(s, batch))).mean()

    def choose(self, z_start: Tensor, teachers: Sequence[Tensor], labels: Tensor) -> Tensor:
        """The target logits, [B, K]."""
        if self.strategy == "self-dist":
            return z_start
        known = None if self.strategy == "most-conf_u" else labels
        if self.strategy.startswith("most-conf"):
            return most_confident([z_start, *teachers], known)
        z_t = most_confident(teachers, known)
        old, new = z_start.argmax(1), z_t.argmax(1)
        if self.strategy == "flip-avg":
            return torch.where((old != new).unsqueeze(1), (z_start + z_t) / 2, z_t)
        only_teacher, only_start = (new == labels) & (old != labels), (old == labels) & (new != labels)
        ask = only_teacher if self.strategy == "flip-st" else ~only_start
        return torch.where(ask.unsqueeze(1), z_t, z_start)
