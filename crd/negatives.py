"""Draws the negatives of a sample."""

import torch
from torch import Tensor

from distiller_zoo.draws import Draws


class Negatives(Draws):
    """Draws nce_k negatives for every sample, never of its own class.

    Draws are stratified over the samples sorted by class, so the cost is nce_k a sample whatever n_data is. With n
    samples of other classes, 0..n-1 is cut into nce_k strata [ceil(i n / nce_k), ceil((i+1) n / nce_k)), and one number
    is drawn from each. So they are distinct (for nce_k > n some strata are empty, and repeats unavoidable). A uniform
    random offset modulo n, one a row, then makes all samples exactly equally likely, whatever the widths of the strata.
    Positions from the own class's block on skip it. The sorted order turns them into sample indices.

    Args:
        labels: [n_data].
        nce_k: negatives of a sample.
        relax: the positive is any sample of the class, instead of the sample itself.

    Raises:
        ValueError: there is only one class.

    Example:
        draw = Negatives(labels, nce_k=16384)
        rows = draw(batch.index)  # [B, 16385], the positive first
    """

    def __init__(self, labels: Tensor, nce_k: int, relax: bool = False) -> None:
        super().__init__()
        size = torch.bincount(labels)
        if (size > 0).sum() < 2:
            raise ValueError(f"negatives need at least two classes, not {int((size > 0).sum())}")
        self.nce_k, self.relax = nce_k, relax
        tables = {"labels": labels, "order": labels.argsort(stable=True), "size": size, "start": size.cumsum(0) - size}
        for name, table in tables.items():
            self.register_buffer(name, table.clone(), persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        """Sample indices [B, nce_k + 1] for the samples index [B]. Column 0 is the positive."""
        own = self.labels[index].unsqueeze(1)
        start, size = self.start[own], self.size[own]
        rows, n = len(index), len(self.order) - size
        u = torch.rand(rows, self.nce_k, generator=self.generator, device=index.device)
        offset, place = torch.rand(2, rows, 1, generator=self.generator, device=index.device, dtype=torch.float64)
        # float64 is exact here: its rounding is far below 1 / nce_k, the distance of a quotient to the next integer.
        steps = torch.arange(self.nce_k + 1, device=index.device, dtype=torch.float64)
        edges = torch.ceil(steps * n / self.nce_k)
        low, width = edges[:, :-1], edges.diff(dim=1)
        position = (low + (u * width).floor() + (offset * n).floor()).long()
        position = torch.where(position >= n, position - n, position)
        position = torch.where(position >= start, position + size, position)
        same_class = self.order[start + (place * size).long()]
        positive = same_class if self.relax else index.unsqueeze(1)
        return torch.cat([positive, self.order[position]], dim=1)
