"""Deep Mutual Learning. Zhang et al., CVPR 2018. https://arxiv.org/abs/1706.00384

L_i = CE(z_i, y) + 1 / (K - 1) sum_j KL(p_j || p_i),  for each of K networks

Differs: all networks step at once, from predictions made before the step. In the authors' code they step in turn.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from .adapters import beside, full, labels_of
from .base import Batch, Count, Distiller, Output, Pair
from .kd import kd_loss


def mutual(z: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Mean KL from the other networks' predictions, which get no gradient, to this one's: a scalar."""
    return sum(kd_loss(z, other, 1.0) for other in others) / len(others)


class DML(Distiller, name="dml"):
    """Networks with different initial weights learn from the labels and from each other. No teacher.

    Checkpoints hold the peers, and --save_predictions saves their predictions. The loss includes the peers' cross
    entropy, so leave -b at 1.

    Args:
        dml_peers: number of networks that train beside the student; each is built as the student.
    """

    weights = (1.0, 0.0, 1.0)
    reads = ()
    one_label = True

    def __init__(self, pair: Pair, *, dml_peers: Count = 1) -> None:
        super().__init__(pair)
        self.peers = nn.ModuleList(pair.anew() for _ in range(dml_peers))
        self.label_loss = pair.label_loss

    @classmethod
    def needs_teacher(cls, options: dict[str, object]) -> bool:
        return False

    def beside(self) -> dict[str, nn.Module]:
        return {f"peer{n}": peer for n, peer in enumerate(self.peers, 1)}

    def forward(self, s: Output, t: Output | None, batch: Batch) -> Tensor:
        everyone = [s.logits, *(beside(peer, batch.images, s) for peer in self.peers)]
        labels, loss = labels_of(s, batch), 0.0
        share = self.label_loss.share(batch) / batch.share  # by the latter the criterion multiplies all of it
        for i, z in enumerate(everyone):
            loss = loss + mutual(z, [*everyone[:i], *everyone[i + 1 :]])
            loss = loss + (share * self.label_loss(full(z), labels) if i else 0.0)
        return loss
