"""Images a second that a training loader gives: cropped, flipped, normalised float32 on the device.

python benchmarks/loader.py --dataset tinyimagenet --data_folder data --out results/speed

Ours from memory (up to 64 pixels) and from the files, and torchvision's ImageFolder and transforms in a DataLoader with
equally many workers. They take turns, a whole epoch each, so that a change of the machine's load meets all alike;
medians are taken over the rounds. Writes loader_<size>.json after every round and loader_<size>.md, the table.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import DataLoader, Subset  # noqa: E402
from torchvision import transforms  # noqa: E402
from torchvision.datasets import ImageFolder  # noqa: E402

import dataset  # noqa: E402
from dataset.storage import LARGEST_KEPT  # noqa: E402
from helper import checkpoint, devices, parsing, util  # noqa: E402

SETS = ["folder", "imagenet", "tinyimagenet"]  # whose train/ is as ImageFolder reads it


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = util.OneLineParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", choices=SETS, default="tinyimagenet", help="data set that is read")
    add("--data_folder", default="./data", help="where the data set is")
    add("--image_size", type=parsing.count, help="pixels; default: the data set's own")
    add("--images", type=parsing.count, help="of the training set; default: all")
    add("--batch_size", type=parsing.number(int, 2), default=64, help="images of a step")
    add("--num_workers", type=parsing.count, default=os.cpu_count(), help="of each loader")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--repeats", type=parsing.count, default=5, help="how many times each is timed")
    add("--out", type=Path, required=True, help="folder of the results")
    return parser.parse_args(argv)


def epochs_of(loader: Callable[[int], Iterator]) -> Iterator[int]:
    """The images of an epoch each time, when all have arrived."""
    epoch = 0
    while True:
        epoch += 1
        images = 0
        for x in loader(epoch):
            assert x.dtype == torch.float32
            images += len(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        yield images


def ours(data: dataset.ImageSet, opt: argparse.Namespace, device: torch.device) -> Callable[[int], Iterator]:
    augment = dataset.augmentation(data, device)
    batches = dataset.Batches(augment, data.train_labels.to(device), opt.batch_size, seed=0, drop_last=True)
    return lambda epoch: (batch.images for batch in batches.epoch(epoch))


def torchvisions(data: dataset.ImageSet, opt: argparse.Namespace, device: torch.device) -> Callable[[int], Iterator]:
    """The same images."""
    _, _, size, _ = data.train_images.shape
    names = set(data.train_images.names())
    crop = [transforms.RandomResizedCrop(size)]
    if size <= LARGEST_KEPT:
        crop = [transforms.RandomCrop(size, size // 8)]
        if any(Image.open(name).size != (size, size) for name in names):
            crop = [transforms.Resize(size), transforms.CenterCrop(size), *crop]
    steps = [*crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    steps.append(transforms.Normalize(data.mean, data.std))
    files = ImageFolder(Path(os.path.commonpath(names)), transforms.Compose(steps))
    chosen = Subset(files, [i for i, (name, _) in enumerate(files.samples) if name in names])
    assert len(chosen) == len(names)
    loader = DataLoader(
        chosen, opt.batch_size, shuffle=True, drop_last=True, num_workers=opt.num_workers, persistent_workers=True,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    return lambda epoch: (x.to(device, non_blocking=True) for x, _ in loader)


@util.command
def main(argv: list[str] | None = None) -> None:
    opt = parse(argv)
    device = devices.choose_device(opt.device)
    data = {}
    for loader in ("stream", "memory"):
        storage = dataset.Storage(loader, memory_gb=1000, workers=opt.num_workers)
        with util.as_user_error(f"--dataset {opt.dataset}"):
            if loader == "stream" or data["stream"].train_images.size <= LARGEST_KEPT:
                size, images = opt.image_size, opt.images
                data[loader] = dataset.load(opt.dataset, opt.data_folder, size, images, storage=storage)
    loaders = {f"ours, {loader}": ours(each, opt, device) for loader, each in data.items()}
    loaders["torchvision, ImageFolder + DataLoader"] = torchvisions(data["stream"], opt, device)

    size = data["stream"].train_images.size
    given = {key: str(value) for key, value in vars(opt).items() if key not in ("out", "data_folder")}
    found = {name: [] for name in loaders}
    timed = {name: epochs_of(loader) for name, loader in loaders.items()}
    opt.out.mkdir(parents=True, exist_ok=True)
    for repeat in range(opt.repeats + 1):
        for name, epochs in timed.items():
            start = time.perf_counter()
            images = next(epochs)
            speed = images / (time.perf_counter() - start)
            print(f"{repeat}  {name}: {speed:.0f} images/s{'' if repeat else ' (warm-up)'}", flush=True)
            found[name] += [speed] if repeat else []
        result = {"options": given, "pixels": size, "images_per_second": found, **devices.machine(device)}
        checkpoint.save_json(opt.out / f"loader_{size}.json", result)

    base = found["torchvision, ImageFolder + DataLoader"]
    lines = ["| loader | images/s | lowest to highest | times torchvision's |", "| --- | --- | --- | --- |"]
    for name, speeds in found.items():
        ratio = median(speeds) / median(base)
        lines.append(f"| {name} | {median(speeds):.0f} | {min(speeds):.0f} to {max(speeds):.0f} | {ratio:.2f} |")
    table = "\n".join(lines)
    print(f"\n{table}")
    checkpoint.atomically(opt.out / f"loader_{size}.md", lambda file: file.write(f"{table}\n".encode()))


if __name__ == "__main__":
    main()
