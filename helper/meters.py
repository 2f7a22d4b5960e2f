"""Sums that stay on the device, so that a step never waits for them."""

import torch
from torch import Tensor

from . import parallel
from .util import Diverged


class Meters:
    """Loss terms and hits of one epoch. `read` is the only place that waits for the device, and for other processes."""

    def __init__(self, device: torch.device, window: int) -> None:
        self.device, self.window = device, window
        self.names: list[str] = []
        self.recent: list[Tensor] = []  # terms of each step since the last read, so that a bad one can be named
        self.sums = torch.zeros(0, device=device, dtype=torch.float64)
        self.hits = torch.zeros((), device=device, dtype=torch.int64)
        self.images = self.steps = 0
        self.means: dict[str, float] = {}

    def add(self, terms: dict[str, Tensor], logits: Tensor, labels: Tensor, total: int) -> None:
        """terms: whose mean over the processes counts, for `total` samples; logits, labels: of this process's part."""
        if not self.names:
            self.names = list(terms)
            self.sums = self.sums.new_zeros(len(terms))
        row = torch.stack([term.detach().double() for term in terms.values()])
        self.recent.append(row)
        self.sums += row * total
        self.hits += (logits.detach().argmax(1) == labels).sum()
        self.images += total
        self.steps += 1

    def read(self, epoch: int, stage: str) -> dict[str, float]:
        """Means of the epoch so far: each term, `loss` (their sum) and `acc` in percent.

        Raises Diverged, naming epoch, step and term, where a term became NaN or infinite since the last read.
        """
        if self.recent:
            rows = parallel.total(torch.stack(self.recent))  # not finite in one process, not in the sum
            bad = (~rows.isfinite()).nonzero()
            if len(bad):
                step, term = bad[0].tolist()
                raise Diverged(
                    f"{stage}epoch {epoch}, step {self.steps - len(rows) + step + 1}: "
                    f"the term {self.names[term]!r} of the loss is {rows[step, term].item()}"
                )
            self.recent = []
            sums = (parallel.total(self.sums / parallel.world()) / self.images).tolist()
            hits = parallel.total(self.hits.clone()).item()
            self.means = dict(zip(self.names, sums, strict=True))
            self.means |= {"loss": sum(sums), "acc": 100.0 * hits / self.images}
        return self.means
