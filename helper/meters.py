"""Sums that stay on the device, so that a step never waits for them."""

import time
from typing import Any

import torch
from torch import Tensor

from . import parallel
from .util import Diverged


class Meters:
    """Loss terms and hits of one epoch. `read` is the only place that waits for the device, and for other processes.

    state: of the epoch's first part, where it was stopped.
    """

    def __init__(self, device: torch.device, state: dict[str, Any] | None = None) -> None:
        self.recent: list[Tensor] = []  # terms of each step since the last read, so that a bad one can be named
        self.means: dict[str, float] = {}
        state = state or {"names": [], "sums": torch.zeros(0), "hits": torch.tensor(0), "images": 0, "steps": 0}
        self.names, self.images, self.steps = state["names"], state["images"], state["steps"]
        self.sums = state["sums"].to(device, torch.float64)
        self.hits = state["hits"].to(device)
        self.start = time.perf_counter() - state.get("seconds", 0.0)

    def state(self) -> dict[str, Any]:
        """Of this process, for a checkpoint."""
        sums = {"sums": self.sums.cpu(), "hits": self.hits.cpu()}
        return sums | {"names": self.names, "images": self.images, "steps": self.steps, "seconds": self.seconds}

    @property
    def seconds(self) -> float:
        """Since the epoch began, pauses between its parts left out."""
        return time.perf_counter() - self.start

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
        if self.recent or not self.means:
            self.recent = []
            sums = (parallel.total(self.sums / parallel.world()) / self.images).tolist()
            hits = parallel.total(self.hits.clone()).item()
            self.means = dict(zip(self.names, sums, strict=True))
            self.means |= {"loss": sum(sums), "acc": 100.0 * hits / self.images}
        return self.means
