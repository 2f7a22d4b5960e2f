"""Times epochs of a RepDistiller checkout, whose train_student.py runs as it is: `step_time.py` starts this.

usage: peer.py CHECKOUT, then that script's options. Patched from outside, and nothing in the checkout is changed: the
data set (noise, no download), TensorBoard's package (which does not load
beside newer packages, and of which no step asks anything), and `.cuda()` where there is no GPU.
"""

import os
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torchvision
from PIL import Image
from sample import kept_stdout, serve

CHECKOUT = Path(sys.argv.pop(1)).resolve()
ANSWERS = kept_stdout()
STAGE, IMAGES = os.environ["STAGE"], int(os.environ["IMAGES"])
NOISE = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)


class Noise(torch.utils.data.Dataset):
    def __init__(self, root: str, train: bool = True, transform=None, target_transform=None, download=False) -> None:
        n = IMAGES if train else 64
        self.train, self.transform, self.target_transform = train, transform, target_transform
        self.train_data = self.test_data = NOISE[:n]
        self.train_labels = self.test_labels = [i % 100 for i in range(n)]

    def __len__(self) -> int:
        return len(self.train_data)

    def __getitem__(self, i: int):
        return self.transform(Image.fromarray(self.train_data[i])), self.train_labels[i]


def timed_epoch(epoch, loader, module_list, criterion_list, optimizer, opt):
    assert not STAGE
    serve(
        lambda part: train_distill(epoch, part, module_list, criterion_list, optimizer, opt), lambda _: loader, ANSWERS
    )


def timed_init(model_s, model_t, init_modules, criterion, loader, logger, opt):
    opt.init_epochs = 1 if STAGE else 0

    def on(part: Iterable) -> None:
        init(model_s, model_t, init_modules, criterion, part, logger, opt)

    if STAGE:
        serve(on, lambda _: loader, ANSWERS)
    on(loader)


sys.path.insert(0, str(CHECKOUT))
sys.modules["tensorboard_logger"] = SimpleNamespace(Logger=lambda **_: SimpleNamespace(log_value=lambda *_: None))
torchvision.datasets.CIFAR100 = Noise
if not torch.cuda.is_available():
    torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_, **__: self

from helper import loops, pretrain  # noqa: E402  the checkout's

train_distill, loops.train_distill = loops.train_distill, timed_epoch
init, pretrain.init = pretrain.init, timed_init
runpy.run_path(str(CHECKOUT / "train_student.py"), run_name="__main__")
