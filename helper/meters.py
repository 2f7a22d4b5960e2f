"""Sums that stay on the device, so that a step never waits for them."""

import time
from typing import Any

import torch
from torch import Tensor

from . import parallel
from .util import Diverged


class Meters:
    """Loss terms and hits of one epoch after the other. `read` is what waits for the device and for other processes.

    `add` changes tensors in place and nothing else, so that it can be recorded with a step; `count` follows each step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.names = device, None
        self.hits, self.seen = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(2))
        self.name([])
        self.begin()

    def begin(self, state: dict[str, Any] | None = None) -> None:
        """An epoch starts. state: of its first part, where it was stopped."""
        self.means: dict[str, float] = {}
        self.images = self.steps = self.unread = 0
        for buffer in (self.hits, self.seen, self.sums, self.bad_step, self.bad_value):
            buffer.zero_()
        if state:
            self.name(state["names"])
            self.images, self.steps = state["images"], state["steps"]
            self.sums.copy_(state["sums"])
            self.hits.copy_(state["hits"])
            self.seen.fill_(self.steps)
        self.elapsed, self.start, self.together = state["seconds"] if state else 0.0, time.perf_counter(), 1

    def share(self, together: int) -> None:
        """From now on so many runs share the time."""
        self.elapsed, self.start, self.together = self.seconds, time.perf_counter(), together

    def name(self, names: list[str]) -> None:
        """Makes the sums of terms of these names."""
        if names == self.names:
            return
        self.names = names
        self.sums, self.bad_value = torch.zeros(2, len(names), dtype=torch.float64, device=self.device)
        self.bad_step = torch.zeros(len(names), dtype=torch.int64, device=self.device)

    def state(self) -> dict[str, Any]:
        """Of this process, for a checkpoint."""
        sums = {"sums": self.sums.cpu(), "hits": self.hits.cpu()}
        return sums | {"names": self.names, "images": self.images, "steps": self.steps, "seconds": self.seconds}

    @property
    def seconds(self) -> float:
        """Since the epoch began, pauses between its parts left out; this run's share where several run together."""
        return self.elapsed + (time.perf_counter() - self.start) / self.together

    def add(self, terms: dict[str, Tensor], logits: Tensor, labels: Tensor, total: int) -> None:
        """terms: whose mean over the processes counts, for `total` samples; logits, labels: of this process's part."""
        self.name(list(terms))
        row = torch.stack([term.detach().double() for term in terms.values()])
        self.seen += 1
        first_bad = ~row.isfinite() & (self.bad_step == 0)
        torch.where(first_bad, self.seen, self.bad_step, out=self.bad_step)
        torch.where(first_bad, row, self.bad_value, out=self.bad_value)
        self.sums += row * total
        self.hits += (logits.argmax(1) == labels).sum()

    def count(self, total: int) -> None:
        self.images += total
        self.steps += 1
        self.unread += 1

    def read(self, when: str) -> dict[str, float]:
        """Means of the epoch so far: each term, `loss` (their sum) and `acc` in percent.

        Raises Diverged, naming epoch (`when`), step and term, where a term became NaN or infinite.
        """
        if self.unread or not self.means:
            self.unread = 0
            found = zip(self.bad_step.tolist(), range(len(self.names)), self.bad_value.tolist(), strict=True)
            if bad := [term for part in parallel.all_gather([term for term in found if term[0]]) for term in part]:
                step, term, value = min(bad)
                raise Diverged(f"{when}, step {step}: the term {self.names[term]!r} of the loss is {value}")
            sums = (parallel.all_reduce(self.sums / parallel.world_size()) / self.images).tolist()
            hits = parallel.all_reduce(self.hits.clone()).item()
            self.means = dict(zip(self.names, sums, strict=True))
            self.means |= {"loss": sum(sums), "acc": 100.0 * hits / self.images}
        return self.means
