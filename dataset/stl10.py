"""STL-10: 5,000 training and 8,000 test images of 96x96 pixels, 10 classes.

A. Coates, H. Lee and A. Y. Ng, "An Analysis of Single Layer Networks in Unsupervised Feature Learning", 2011,
https://cs.stanford.edu/~acoates/stl10/

Images have 32x32 pixels by default, as in published linear probes. The 100,000 unlabelled images are not read, but the
download (2.6 GB) includes them.
"""

from pathlib import Path

import torch
from torchvision.datasets import STL10

from . import official
from .base import ImageSet, register
from .pixels import resize

_classes = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@register("stl10")
def stl10(folder: str | Path, image_size: int | None = None) -> ImageSet:
    """[5000, 3, S, S] and [8000, 3, S, S] with S = `image_size` or 32, resized once.

    `folder` holds or is `stl10_binary`; otherwise it is downloaded there. Raises FileNotFoundError if that fails.
    """
    without = [entry for entry in STL10.train_list if "unlabeled" not in entry[0]]
    url = STL10.url.replace("http://ai.stanford.edu", "https://ai.stanford.edu")
    labelled = type("STL10", (STL10,), {"train_list": without, "url": url})
    train, val = official.read(labelled, Path(folder), "binary files", {"split": "train"}, {"split": "test"})
    size = image_size or 32
    return ImageSet(
        resize(torch.from_numpy(train.data), size),
        torch.from_numpy(train.labels).long(),
        resize(torch.from_numpy(val.data), size),
        torch.from_numpy(val.labels).long(),
        _classes,
        mean=(0.4467, 0.4398, 0.4066),
        std=(0.2603, 0.2566, 0.2712),
        padding=size // 8,
    )
