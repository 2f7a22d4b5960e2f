"""`--dataset random`: images of noise, for what does not depend on them. Importing this registers it.

IMAGES in the environment is their number, 1,600 where it is not set.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import dataset


@dataset.base.register("random")
def random_images(folder: str, image_size: int | None) -> dataset.ImageSet:
    generator, size, n = torch.Generator().manual_seed(0), image_size or 32, int(os.environ.get("IMAGES", 1600))
    few = torch.randint(256, (64, 3, size, size), dtype=torch.uint8, generator=generator)
    images = torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    names = tuple(map(str, range(100)))
    labels = torch.arange(n) % 100
    return dataset.ImageSet(images, labels, few, labels[:64], names, (0.5,) * 3, (0.25,) * 3)
