"""Prime-Aware Adaptive Distillation. Zhang et al., ECCV 2020. https://arxiv.org/abs/2008.01458

mean((f_t - f_s)^2 / (eps + exp(v)) + v),  v: log-variance predicted from f_s

The second stage: start it from a student of `cse_l2` (`--path_s`), at a small learning rate; without, it is unstable.
Differs: if the widths differ, the student's features pass a new, learned linear layer.
"""

from torch import Tensor, nn

from .adapters import BatchNorm, full
from .base import Batch, Distiller, Output, Pair
from .cse_l2 import embedding


class PADL2(Distiller, name="pad_l2"):
    """Squared error divided by a variance that the student predicts for each feature. Can be negative."""

    weights = (1.0, 0.0, 1.0)
    reads = ()
    trained_student = True
    eps = 1e-6

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        d = pair.t.pooled.shape[1]
        self.embed = embedding(pair)
        self.var_estimator = nn.Sequential(
            nn.Linear(d, d), nn.Unflatten(1, (d, 1, 1)), BatchNorm(d), nn.Flatten(1)
        )  # fmt: skip

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        h_s = self.embed(full(s.pooled))
        return self.adaptive_loss(h_s, full(t.pooled.detach()), self.var_estimator(h_s))

    def adaptive_loss(self, h_s: Tensor, h_t: Tensor, log_var: Tensor) -> Tensor:
        """Mean over elements of (h_t - h_s)^2 / (eps + exp(log_var)) + log_var."""
        return ((h_t - h_s).square() / (self.eps + log_var.exp()) + log_var).mean()
