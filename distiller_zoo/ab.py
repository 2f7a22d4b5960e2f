"""Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons. Heo et al., AAAI 2019.
https://arxiv.org/abs/1811.03233

3/1000 sum_l 2^(l - n) |max(0, m - y g_s)|^2,  y = 1 where g_t > 0, else -1;  g: pre-activations of stage l of n

As in RepDistiller, all stages are initialised at once. Afterwards only the labels (and KD, if -a is given) train the
student, so `-b` has no effect.
"""

from torch import Tensor, nn

from .adapters import Regressor, full, pair_maps, same_size
from .base import Batch, Distiller, Output, Pair, Weight


class AB(Distiller, name="ab", aliases=("abound",)):
    """Pushes each student pre-activation past a margin, to the teacher's side of zero, in an initialisation stage.

    Args:
        ab_margin: the margin's distance from zero.
    """

    weights = (1.0, 0.0, 0.0)
    reads = ("preacts",)

    def __init__(self, pair: Pair, *, ab_margin: Weight = 1.0) -> None:
        super().__init__(pair)
        self.margin = ab_margin
        self.connectors = nn.ModuleList(
            nn.Identity() if s.shape[1:] == t.shape[1:] else Regressor(s.shape, t.shape, relu=False)
            for s, t in pair_maps(pair.s.preacts[1:], pair.t.preacts[1:])
        )

    def init_loss(self, s: Output, t: Output, batch: Batch) -> Tensor:
        """Sums over elements, averages over samples. The last stage has weight 1, each earlier one half the next."""
        total, m = 0.0, self.margin
        for connect, (g_s, g_t) in zip(self.connectors, pair_maps(s.preacts[1:], t.preacts[1:]), strict=True):
            g_s, g_t = same_size(connect(full(g_s)), full(g_t.detach()))
            side = 2 * (g_t > 0) - 1 + 0 * g_t  # + 0 * g_t: a teacher's NaN must not be hidden
            total = total / 2 + (m - side * g_s).relu().square().sum()
        return total * (3 / 1000 / s.logits.shape[0])

    def forward(self, s: Output, t: Output, batch: Batch) -> Tensor:
        return full(s.logits.new_zeros(()))
