"""Random numbers of a method's own. They are saved with it, and do not depend on other draws."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import Batch


class Draws(nn.Module):
    """Holds a generator. Recorded steps draw from it, and checkpoints save its state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.empty(0), persistent=False)
        self.seed = torch.initial_seed()
        self._generator: torch.Generator | None = None
        self._state: Tensor | None = None

    @property
    def generator(self) -> torch.Generator:
        """The generator, on the module's device. Made at first use, because the module moves after it is built."""
        if self._generator is None or self._generator.device != self.place.device:
            self._generator = torch.Generator(self.place.device)
            self._restore()
        return self._generator

    def _restore(self) -> None:
        """Sets the saved state in the existing generator, because a recorded step keeps drawing from it."""
        self._generator.manual_seed(self.seed)
        # A CPU's state does not fit a GPU's generator, which then starts from the seed.
        if self._state is not None and self._state.numel() == self._generator.get_state().numel():
            self._generator.set_state(self._state)

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self._state = state.cpu()
        if self._generator is not None:
            self._restore()

    def rows(self, f: Tensor, batch: Batch, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in 0..1 for each row of an output, [len(f), *shape].

        Each process draws those of the whole batch, and takes its own rows.
        """
        views = len(f) // len(batch.labels)
        u = torch.rand(batch.total * views, *shape, generator=self.generator, device=f.device)
        start = views * sum(batch.whole.sizes[: batch.whole.rank]) if batch.whole else 0
        return u[start : start + len(f)]
