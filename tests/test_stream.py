"""Images that stay in their files: the same batches as from memory, torchvision's crops, and processes that behave."""

import functools
import io
import os
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_more_datasets import make_tinyimagenet
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as published

import dataset
import train_teacher
from dataset.cuts import PaddedCrop, ResizedCrop
from dataset.policies import AutoAugment, Policy, RandAugment, WeakAndStrong
from distiller_zoo.sskd import Rotations

STREAM = dataset.Storage("stream", workers=2)


def make_imagenet(root: Path, n: int = 4) -> Path:
    """Two classes in ImageNet's layout, with all that is odd in it: grey and CMYK images, a PNG, long and tiny ones."""
    rng = np.random.default_rng(0)
    kinds = [("RGB", "JPEG", (90, 70)), ("L", "JPEG", (70, 90)), ("CMYK", "JPEG", (80, 80)), ("RGBA", "PNG", (200, 20))]
    for part in ("train", "val"):
        for wnid in ("n02", "n01"):
            (root / part / wnid).mkdir(parents=True)
            for i in range(n):
                mode, kind, size = kinds[i % 4]
                # large spots, so that a crop or a flip of it is another image
                image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(size).convert(mode)
                image.save(root / part / wnid / f"{wnid}_{i}.JPEG", kind)
    return root


def batches(data: dataset.ImageSet, views=lambda augment: augment, **more) -> dataset.Batches:
    return dataset.Batches(views(dataset.augmentation(data, "cpu")), data.train_labels, 5, seed=1, **more)


def assert_equal(found, expected) -> None:
    for a, b in zip(found, expected, strict=True):
        for x, y in zip((*a[:3], *(a.drawn or ())), (*b[:3], *(b.drawn or ())), strict=True):
            assert torch.equal(x, y) and x.stride() == y.stride()


# ---- where images live does not change them ----


@pytest.mark.parametrize("name", ["tinyimagenet", "folder", "imagenet"])
def test_small_images_are_the_same_from_memory(name, tmp_path):
    make_tinyimagenet(tmp_path) if name == "tinyimagenet" else make_imagenet(tmp_path)
    load = functools.partial(dataset.load, name, tmp_path, 32, limit_train=6)
    kept, streamed = load(storage=dataset.Storage("memory")), load(storage=STREAM)
    assert isinstance(kept.train_images, torch.Tensor) and not isinstance(streamed.train_images, torch.Tensor)
    assert streamed.train_images.shape == kept.train_images.shape == (6, 3, 32, 32)
    assert (streamed.mean, streamed.std, streamed.classes) == (kept.mean, kept.std, kept.classes)
    one, other = batches(kept), batches(streamed)
    assert one.augment.outcomes == other.augment.outcomes == 162
    for epoch in (1, 2):
        assert_equal(other.epoch(epoch), one.epoch(epoch))
    assert_equal(other.epoch(2, start_step=1), list(one.epoch(2))[1:])
    for part in ((0, 1), (0, 2), (1, 2)):
        val = [dataset.ValBatches.of(data, 3, "cpu", part=part) for data in (streamed, kept)]
        assert_equal(*val)
        assert_equal(*val)


def strong(policy: type[Policy], **more) -> functools.partial:
    return functools.partial(WeakAndStrong, policy=policy, **more)


@pytest.mark.parametrize("size", [32, 80])
@pytest.mark.parametrize("views", [strong(AutoAugment), strong(RandAugment, cutout=True), Rotations])
def test_views_of_methods(views, size, tmp_path):
    data = dataset.load("imagenet", make_imagenet(tmp_path), size, storage=STREAM)
    whole = list(batches(data, views).epoch(3))
    assert whole[0].images.dim() == 5 and whole[0].images.shape[-1] == size
    plain = batches(data).augment
    for batch in whole:
        view = batch.drawn[1] if batch.drawn[1].dim() == 1 else batch.drawn[1][:, 0]
        assert torch.equal(batch.images[:, 0], plain(batch.drawn[0], view))
    shares = [batches(data, views, part=(rank, 2)).epoch(3) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=False):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)


@pytest.mark.parametrize("size", [32, 80])
@pytest.mark.parametrize("policy", [*dataset.POLICIES, "crop_flip"])
def test_augmentation_and_mixing(policy, size, tmp_path):
    """The same pixels from files as from memory, after a stop within the epoch, and in the parts of two processes."""
    make_imagenet(tmp_path)

    def some(storage: dataset.Storage, part: tuple[int, int] = (0, 1)) -> dataset.Batches:
        data = dataset.load("imagenet", tmp_path, size, storage=storage)
        found = batches(data, lambda _: dataset.augmentation(data, "cpu", policy, 0.5), part=part)
        found.mixing = dataset.Mixing(0.5, 1.0, (size, size))
        return found

    whole = list(some(STREAM).epoch(3))
    if size == 32:
        assert_equal(some(dataset.Storage("memory")).epoch(3), whole)
    assert_equal(some(STREAM).epoch(3, start_step=1), whole[1:])
    shares = [some(STREAM, (rank, 2)).epoch(3) for rank in range(2)]
    for batch, *parts in zip(whole, *shares, strict=False):
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.mixed.labels for part in parts]), batch.mixed.labels)


# ---- images above 64 pixels ----


def test_resized_crops_are_torchvisions(tmp_path):
    data = dataset.load("imagenet", make_imagenet(tmp_path), 80, storage=STREAM)
    found = list(batches(data).epoch(1))
    cut = ResizedCrop(80, flip=True)
    for batch in found:
        for image, i, seed in zip(batch.images, batch.index.tolist(), batch.drawn[1].tolist(), strict=True):
            file = Image.open(data.train_images.names()[i])
            box, flip = cut.box(*file.size, seed)
            plain = published.resized_crop(file.convert("RGB"), *box, [80, 80])
            plain = published.to_tensor(published.hflip(plain) if flip else plain)
            torch.testing.assert_close(image, published.normalize(plain, data.mean, data.std), rtol=1e-5, atol=1e-5)
    assert_equal(batches(data).epoch(1), found)
    assert not torch.equal(next(batches(data).epoch(2)).images, found[0].images)
    with pytest.raises(StopIteration):
        next(batches(data).epoch(1, start_step=len(found)))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (30, 40), (200, 20), (7, 1)])
def test_parts_are_drawn_as_torchvision_draws_them(width, height):
    cut, n = ResizedCrop(224, flip=True), 3000
    drawn = cut.draw(n, torch.Generator().manual_seed(0))
    found = [cut.box(width, height, seed) for seed in drawn.tolist()]
    assert abs(sum(flip for _, flip in found) / n - 0.5) < 4 * 0.5 / n**0.5
    assert not any(ResizedCrop(224, flip=False).box(width, height, seed)[1] for seed in range(20))
    boxes = torch.tensor([box for box, _ in found]).double()
    assert (boxes >= 0).all() and (boxes[:, 2:] >= 1).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(n)]
    theirs = torch.tensor(theirs).double()
    for ours, other in zip(boxes.T, theirs.T, strict=True):
        spread = (ours.var() + other.var()).sqrt() / n**0.5
        assert abs(ours.mean() - other.mean()) <= 4.5 * spread
        assert abs(ours.std() - other.std()) <= 0.1 * other.std()


def test_validation_is_published(tmp_path):
    """Shorter side to 256, centre of 224; images of other sizes in proportion."""
    data = dataset.load("imagenet", make_imagenet(tmp_path), storage=STREAM)
    assert data.val_images.shape == (8, 3, 224, 224)
    smaller = dataset.load("imagenet", tmp_path, 112, storage=STREAM)
    for each, size, resized in ((data, 224, 256), (smaller, 112, 128)):
        found = torch.cat([batch.images for batch in dataset.ValBatches.of(each, 3, "cpu")])
        for image, name in zip(found, each.val_images.names(), strict=True):
            plain = published.center_crop(published.resize(Image.open(name).convert("RGB"), [resized]), [size, size])
            plain = published.normalize(published.to_tensor(plain), data.mean, data.std)
            torch.testing.assert_close(image, plain, rtol=1e-5, atol=1e-5)


# ---- which loader ----


def test_the_budget(tmp_path):
    make_imagenet(tmp_path)
    kept = 3 * (8 * 40**2 + 8 * 32**2) / 1e9

    def loader(size: int, **storage) -> str:
        images = dataset.load("imagenet", tmp_path, size, storage=dataset.Storage(**storage)).train_images
        return "memory" if isinstance(images, torch.Tensor) else images.storage.loader

    assert loader(32) == loader(64) == loader(32, memory_gb=1.01 * kept) == "memory"
    assert loader(32, memory_gb=0.99 * kept) == loader(65) == loader(32, loader="stream") == "stream"
    with pytest.raises(ValueError, match="--loader memory: the images take 6.3e-05 GB, --memory_gb is 1e-06"):
        loader(32, loader="memory", memory_gb=1e-6)
    with pytest.raises(ValueError, match="--loader memory: holds images of at most 64 pixels, these have 65"):
        loader(65, loader="memory")
    with pytest.raises(ValueError, match="--loader dali: reads images of more than 64 pixels, these have 64"):
        loader(64, loader="dali")
    with pytest.raises(ValueError, match="--loader stream: digits has no image files; it is always in memory"):
        dataset.load("digits", tmp_path, storage=STREAM)


def test_a_validation_folder_as_it_is_published(tmp_path):
    make_imagenet(tmp_path)
    for path in list(tmp_path.glob("val/*/*")):
        path.rename(tmp_path / "val" / path.name)
    for path in tmp_path.glob("val/n*/"):
        if path.is_dir():
            path.rmdir()
    with pytest.raises(ValueError, match="val: expected a folder for each .*; found none, and 8 images outside, which"):
        dataset.load("imagenet", tmp_path)


# ---- DALI ----


def test_dali_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ValueError, match="--loader dali: NVIDIA DALI 2 is not installed here .*nvidia.dali"):
        dataset.load("imagenet", make_imagenet(tmp_path), storage=dataset.Storage("dali"))


class Node:
    """Stands for a node of DALI's graph: what it would give for a batch, made by PIL."""

    def __init__(self, value) -> None:
        self.value = value

    @staticmethod
    def map(function, *nodes) -> "Node":
        return Node(lambda: [function(*each) for each in zip(*[node.value() for node in nodes], strict=True)])


def dali_of_pil(calls: list) -> dict[str, types.ModuleType]:
    """As much of nvidia.dali as is used here: it shows what is handed over, and not that DALI takes it so."""

    def opened(encoded: np.ndarray) -> Image.Image:
        return Image.open(io.BytesIO(encoded.tobytes())).convert("RGB")

    def external_source(source, num_outputs):
        batch = []

        def output(i):
            if i == 0:
                batch[:] = next(source)
                assert all(part.flags.c_contiguous for part in batch[1:]), "DALI takes no strides"
            return list(batch[i])

        return [Node(functools.partial(output, i)) for i in range(num_outputs)]

    def image_slice(encoded, *, start, shape, axis_names, **how):
        calls.append(how)
        assert axis_names == "HW"
        return Node.map(lambda x, a, b: published.crop(opened(x), *a.tolist(), *b.tolist()), encoded, start, shape)

    def image(encoded, **how):
        calls.append(how)
        return Node.map(opened, encoded)

    def resize(images, size):
        if isinstance(size, Node):
            return Node.map(lambda x, s: published.resize(x, [int(side) for side in s]), images, size)
        return Node.map(lambda x: published.resize(x, size), images)

    def cut(images, *, start, shape, axis_names):
        assert axis_names == "HW"
        return Node.map(lambda x, corner: published.crop(x, *corner.tolist(), *shape), images, start)

    def flip(images, horizontal):
        return Node.map(lambda x, f: published.hflip(x) if f else x, images, horizontal)

    def pipeline_def(**how):
        calls.append(how)
        return lambda graph: graph

    class DALIGenericIterator:
        def __init__(self, node, names):
            self.node, (self.name,) = node, names

        def __iter__(self):
            return self

        def __next__(self):
            return [{self.name: torch.from_numpy(np.stack(self.node.value()))}]

    fn = types.SimpleNamespace(
        external_source=external_source, resize=resize, slice=cut, flip=flip,
        decoders=types.SimpleNamespace(image=image, image_slice=image_slice),
    )  # fmt: skip
    dali, plugin = types.ModuleType("nvidia.dali"), types.ModuleType("nvidia.dali.plugin.pytorch")
    dali.fn, dali.pipeline_def, dali.types = fn, pipeline_def, types.SimpleNamespace(RGB="RGB")
    plugin.DALIGenericIterator = DALIGenericIterator
    nvidia, plugins = types.ModuleType("nvidia"), types.ModuleType("nvidia.dali.plugin")
    return {m.__name__: m for m in (nvidia, dali, plugins, plugin)}


def test_dali_is_given_the_same_order_parts_and_flips(tmp_path, monkeypatch):
    calls = []
    for name, module in dali_of_pil(calls).items():
        monkeypatch.setitem(sys.modules, name, module)
    load = functools.partial(dataset.load, "imagenet", make_imagenet(tmp_path), 80)
    streamed, by_dali = load(storage=STREAM), load(storage=dataset.Storage("dali"))
    assert type(dataset.augmentation(by_dali, "cpu")).__name__ == "Dali"
    for part in ((0, 1), (1, 2)):
        assert_equal(batches(by_dali, part=part).epoch(2), batches(streamed, part=part).epoch(2))
        assert_equal(*(dataset.ValBatches.of(data, 3, "cpu", part=part) for data in (by_dali, streamed)))
    assert {"device": "cpu", "output_type": "RGB", "adjust_orientation": False} in calls
    assert {"batch_size": 5, "num_threads": 8, "device_id": None} in calls
    (tmp_path / "train" / "n01" / "n01_0.JPEG").write_bytes(b"no image")
    with pytest.raises(dataset.Unreadable, match="n01_0.JPEG: cannot be decoded"):
        list(batches(by_dali).epoch(1))


# ---- processes ----

RUN = "--model resnet8 --dataset imagenet --image_size 32 --loader stream --num_workers 2 --batch_size 4 --device cpu"


def command(place: Path, *more: str) -> list[str]:
    return [*RUN.split(), "--data_folder", str(place / "data"), "--save_folder", str(place / "save"), *more]


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in text.read_text().split()] if text.exists() else []


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_image_that_breaks_in_the_middle(tmp_path, capsys):
    make_imagenet(tmp_path / "data")
    for part in ("train", "val"):
        path = tmp_path / "data" / part / "n01" / "n01_1.JPEG"
        whole = path.read_bytes()
        path.write_bytes(whole[:200])
        with pytest.raises(SystemExit) as stop:
            train_teacher.main(command(tmp_path, "--epochs", "1", "--run_name", part))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and "Traceback" not in error
        assert re.search(f"error: .*{part}/n01/n01_1.JPEG: cannot be decoded as an image: ", error)
        path.write_bytes(whole)
    path.unlink()
    data = dataset.load("imagenet", tmp_path / "data", 32, storage=STREAM)
    os.unlink(data.train_images.names()[0])
    with pytest.raises(dataset.Unreadable, match="n01_0.JPEG: cannot be decoded as an image: .*No such file"):
        list(batches(data).epoch(1))


def test_open_files_and_processes_stay_few(tmp_path):
    data = dataset.load("imagenet", make_imagenet(tmp_path), 32, storage=STREAM)
    training, val = batches(data), dataset.ValBatches.of(data, 3, "cpu")
    before, seen = children(os.getpid()), []
    for epoch in range(1, 13):
        next(training.epoch(epoch))  # left in the middle
        list(training.epoch(epoch)), list(val)
        seen.append(len(os.listdir("/proc/self/fd")))
    assert max(seen[1:]) - seen[1] <= 4  # a batch that is under way has one
    state = torch.get_rng_state()
    list(training.epoch(5))
    assert torch.equal(torch.get_rng_state(), state)
    workers = set(children(os.getpid())) - set(before)
    assert len(workers) == 4
    del training, val
    wait_for(lambda: not any(alive(worker) for worker in workers), 10)


def test_a_worker_that_dies(tmp_path, monkeypatch, capsys):
    make_imagenet(tmp_path / "data")
    cut, parent = PaddedCrop.__call__, os.getpid()

    def dies(*args):
        if os.getpid() == parent:
            return cut(*args)
        time.sleep(0.3)  # till the parent listens for it; else it looks after 5 seconds
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(PaddedCrop, "__call__", dies)
    with pytest.raises(SystemExit) as stop:
        train_teacher.main(command(tmp_path, "--epochs", "1", "--num_workers", "1"))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1, error
    assert re.search("error: DataLoader worker .*; fewer --num_workers need less memory", error)


def test_signals(tmp_path, python):
    """To all processes, as a terminal, torchrun or a scheduler sends them; resumed, the run ends as it would have."""
    make_imagenet(tmp_path / "data")
    models = tmp_path / "save" / "models"
    start = command(tmp_path, "--epochs", "30", "--run_name", "stopped")
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    server = next(pid for pid in children(os.getpid()) if b"forks.py" in Path(f"/proc/{pid}/cmdline").read_bytes())
    for rows, number in ((1, signal.SIGINT), (2, signal.SIGTERM), (3, signal.SIGKILL)):
        log = models / "stopped" / "log.csv"
        with subprocess.Popen([python, ROOT / "train_teacher.py", *start], **pipes) as client:
            wait_for(lambda rows=rows, log=log: log.exists() and log.read_text().count("\n") > rows)
            (job,) = children(*children(server))
            workers = children(job)
            assert len(workers) == 4
            for pid in (*workers, job) if number != signal.SIGKILL else [job]:
                os.kill(pid, number)
            error = client.communicate(timeout=60)[1]
        wait_for(lambda workers=workers: not any(alive(worker) for worker in workers), 5)
        assert client.returncode == 128 + number
        assert "Traceback" not in error and ("stopped after" in error) == (number != signal.SIGKILL), error
    train_teacher.main(start)
    train_teacher.main(command(tmp_path, "--epochs", "30", "--run_name", "whole", "--loader", "memory"))
    logs = ((models / name / "log.csv").read_text() for name in ("stopped", "whole"))
    stopped, whole = ([line.split(",")[:7] for line in log.splitlines()] for log in logs)
    assert stopped == whole
