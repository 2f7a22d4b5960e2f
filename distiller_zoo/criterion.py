"""The total loss: gamma * cross entropy + alpha * KD + sum of beta_i * method_i."""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Batch, Distiller, Output
from .kd import KD


class Criterion(nn.Module):
    """Weighted terms by name; a term whose weight is 0 is not computed.

    Holds what trains beside the student (adapters) and what must be saved with it (banks).
    """

    def __init__(
        self,
        gamma: float = 1.0,
        alpha: float = 0.0,
        kd: KD | None = None,
        methods: dict[str, Distiller] | None = None,
        betas: list[float] | None = None,
    ) -> None:
        super().__init__()
        self.gamma, self.alpha, self.betas = gamma, alpha, betas or []
        self.kd = kd
        self.methods = nn.ModuleDict(methods or {})

    @property
    def has_init(self) -> bool:
        return any(method.init_loss for method in self.methods.values())

    def set_epoch(self, epoch: int) -> None:
        for method in self.methods.values():
            method.epoch = epoch

    def forward(self, s: Output, t: Output | None, batch: Batch) -> dict[str, Tensor]:
        terms = {}
        if self.gamma:
            # every view of a sample has its label
            labels = batch.labels.repeat_interleave(len(s.logits) // len(batch.labels))
            terms["ce"] = self.gamma * F.cross_entropy(s.logits.float(), labels)
        if self.alpha:
            terms["kd"] = self.alpha * self.kd(s, t, batch)
        for (name, method), beta in zip(self.methods.items(), self.betas, strict=True):
            if beta:
                # -a may have a term of this name already
                terms[name] = beta * method(s, t, batch) + terms.get(name, 0.0)
        return terms

    def init(self, s: Output, t: Output, batch: Batch) -> dict[str, Tensor]:
        """The terms of the initialisation stage, unweighted as in RepDistiller."""
        return {name: m.init_loss(s, t, batch) for name, m in self.methods.items() if m.init_loss}
