"""How a network does on a whole set."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import parallel
from .progress import NO_BAR, Bar
from .run import Run
from .step import Precision


@torch.no_grad()
def validate(val_batches: Iterable, model: nn.Module, precision: Precision, bar: Bar = NO_BAR) -> dict[str, float]:
    """Cross entropy and accuracy in percent over a whole set, of which each process has a part: each sample once."""
    model.eval()
    sums = torch.zeros(3, device=precision.device, dtype=torch.float64)
    images = 0
    for batch in bar(val_batches):
        with precision.autocast():
            logits = model(batch.images)
        logits = logits.float()
        hits = logits.topk(min(5, logits.shape[1]), 1).indices == batch.labels[:, None]
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        sums += torch.stack([loss.double(), hits[:, 0].sum().double(), hits.sum().double()])
        images += len(batch.labels)
    sums = parallel.all_reduce(torch.cat([sums, sums.new_tensor([images])]))
    loss, top1, top5 = (sums[:3] / sums[3]).tolist()
    return {"val_loss": loss, "val_acc": 100.0 * top1, "val_acc_top5": 100.0 * top5}


@torch.no_grad()
def predict(val_batches: Iterable, model: nn.Module, precision: Precision) -> Tensor:
    """[N, 3] in the order of the set: label, predicted class, its probability."""
    model.eval()
    found = []
    for batch in val_batches:
        with precision.autocast():
            logits = model(batch.images)
        confidence, prediction = logits.float().softmax(1).max(1)
        found.append(torch.stack([batch.labels.double(), prediction.double(), confidence.double()], 1))
    return torch.cat(parallel.all_gather(torch.cat(found).cpu()))


def test(run: Run, network: nn.Module, val_batches: Iterable, precision: Precision) -> None:
    """`--test_only`: says how the network does, which the run has found."""
    network.to(precision.device, memory_format=torch.channels_last)
    bar = Bar("test", run.options["quiet"])
    row = validate(val_batches, parallel.data_parallel(network, precision.device), precision, bar)
    print(f"{run.tested}: loss {row['val_loss']:.4f}  top-1 {row['val_acc']:.2f} %  top-5 {row['val_acc_top5']:.2f} %")
