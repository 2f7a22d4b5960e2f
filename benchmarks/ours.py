"""Times epochs of train_student.py, which runs as it is: `step_time.py` starts this, with the script's options.

The data set `random` holds images of noise, of which time does not depend.
"""

import inspect
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from sample import Slice, kept_stdout, serve

import dataset
import train_student
from helper import loops

ANSWERS = kept_stdout()
STAGE, IMAGES, BANK = os.environ["STAGE"], int(os.environ["IMAGES"]), int(os.environ["BANK"])


@dataset.base.register("random")
def random_images(folder: str, image_size: int | None) -> dataset.ImageSet:
    generator, size = torch.Generator().manual_seed(0), image_size or 32
    few = torch.randint(256, (64, 3, size, size), dtype=torch.uint8, generator=generator)
    images = torch.randint(256, (IMAGES, 3, size, size), dtype=torch.uint8, generator=generator)
    names = tuple(map(str, range(100)))
    labels = torch.arange(IMAGES) % 100
    return dataset.ImageSet(images, labels, few, labels[:64], names, (0.5,) * 3, (0.25,) * 3)


def timed(*args: object, **kwargs: object) -> dict[str, float]:
    given = inspect.signature(train).bind(*args, **kwargs)
    batches = given.arguments["batches"]
    assert given.arguments["stage"].name == STAGE

    def on(part: Slice) -> None:
        given.arguments["batches"] = part
        train(*given.args, **given.kwargs)

    serve(on, batches.epoch, ANSWERS)


def with_bank(s, t, student, teacher, labels):  # noqa: ANN001, ANN202  as Pair takes them
    return Pair(s, t, student, teacher, torch.arange(BANK) % 100 if BANK else labels)


train, loops.train = loops.train, timed
Pair, train_student.Pair = train_student.Pair, with_bank
train_student.main()
