"""The digest of a data set changes with what is trained and validated on, and with nothing else."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_more_datasets import make_cinic10

import dataset


def make_tree(root: Path) -> Path:
    """Classes of 1, 2 and 3 images, so that labels shift where their order changes; BMP files are equally long."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for n, name in enumerate(("ant", "bee", "cat"), start=1):
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / part / name / f"{i}.bmp")
    return root


def digests(root: Path, loader: str, name: str = "folder") -> dict[str, str]:
    storage = dataset.Storage(loader, workers=2)
    return dataset.fingerprint(dataset.load(name, root, None if name == "cinic10-enlarged" else 8, storage=storage))


def changed(before: dict[str, str], now: dict[str, str]) -> set[str]:
    return {part for part in before.keys() & now.keys() if before[part] != now[part]}


def image(root: Path, name: str = "train/bee/1.bmp", size: int = 8) -> None:
    Image.new("RGB", (size, size), 7).save(root / name)


def renamed(root: Path) -> None:
    for part in ("train", "val"):
        (root / part / "ant").rename(root / part / "dog")


def swapped(root: Path) -> None:
    first, second = root / "train" / "bee" / "0.bmp", root / "train" / "cat" / "0.bmp"
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])


LABELS = {"train labels", "val labels"}
CHANGES: dict[str, tuple[Callable[[Path], object], set[str], set[str]]] = {
    # what is done, and what changes: in memory, in files
    "nothing": (lambda root: None, set(), set()),
    "times": (lambda root: [os.utime(path, (1, 1)) for path in root.rglob("*")], set(), set()),
    "other files": (lambda root: (root / "train" / "ant" / "notes.txt").write_text("x"), set(), set()),
    "replaced": (lambda root: image(root, size=9), {"train images"}, {"train files"}),
    "replaced by one of its length": (image, {"train images"}, set()),
    "two change places": (swapped, {"train images"}, set()),
    "cut short": (lambda root: os.truncate(root / "val" / "ant" / "0.bmp", 100), None, {"val files"}),
    "added": (
        lambda root: image(root, "val/ant/9.bmp"), {"val images", "val labels"}, {"val files", "val labels"}
    ),
    "removed": (
        lambda root: (root / "train" / "cat" / "2.bmp").unlink(),
        {"train images", "train labels"},
        {"train files", "train labels"},
    ),
    "another name": (lambda root: (root / "val/ant/0.bmp").rename(root / "val/ant/1.bmp"), set(), {"val files"}),
    "a class renamed": (
        renamed, {"classes", "train images", "val images"} | LABELS, {"classes", "train files", "val files"} | LABELS
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changes(change, tmp_path):
    root = make_tree(tmp_path / "tree")
    before = {loader: digests(root, loader) for loader in ("memory", "stream")}
    alter, in_memory, in_files = CHANGES[change]
    alter(root)
    assert changed(before["stream"], digests(root, "stream")) == in_files
    if in_memory is not None:
        assert changed(before["memory"], digests(root, "memory")) == in_memory


@pytest.mark.parametrize("loader", ["memory", "stream"])
@pytest.mark.parametrize("name", ["folder", "cinic10-enlarged"])
def test_places_do_not_count(name, loader, tmp_path, monkeypatch):
    root = (make_tree if name == "folder" else make_cinic10)(tmp_path / "tree")
    before = digests(root, loader, name)
    shutil.copytree(root, tmp_path / "a" / "longer" / "place")
    assert digests(tmp_path / "a" / "longer" / "place", loader, name) == before
    monkeypatch.chdir(root.rename(tmp_path / "moved"))
    assert digests(Path("."), loader, name) == digests(Path(".") / ".." / "moved", loader, name) == before


def test_images_in_memory_and_in_files_are_not_compared(tmp_path):
    """`--memory_gb` may change between a kill and the resume."""
    in_memory, in_files = (digests(make_tree(tmp_path / loader), loader) for loader in ("memory", "stream"))
    assert in_memory.keys() - in_files.keys() == {"train images", "val images"}
    assert in_files.keys() - in_memory.keys() == {"train files", "val files"}
    assert not changed(in_memory, in_files)


def test_arrays():
    data = dataset.load("digits", "nowhere")
    before = dataset.fingerprint(data)
    assert before == dataset.fingerprint(dataset.load("digits", "elsewhere"))
    assert before.keys() == {"classes", "train images", "train labels", "val images", "val labels"}

    def after(**values: object) -> set[str]:
        return changed(before, dataset.fingerprint(dataclasses.replace(data, **values)))

    pixels, labels = data.train_images.clone(), data.val_labels.clone()
    for layout in (torch.contiguous_format, torch.channels_last):
        assert not after(train_images=pixels.contiguous(memory_format=layout))
    pixels[1399, 2, 31, 31] ^= 1
    labels[0] = (labels[0] + 1) % 10
    assert after(train_images=pixels) == {"train images"}
    assert after(train_images=data.train_images.mT) == {"train images"}
    assert after(val_labels=labels) == {"val labels"}
    assert after(classes=("01", "", *data.classes[2:])) == {"classes"}
    small = dataset.load("digits", "nowhere", limit_train=100)
    assert changed(before, dataset.fingerprint(small)) == {"train images", "train labels"}


def test_a_file_that_is_gone(tmp_path):
    data = dataset.load("folder", make_tree(tmp_path), 8, storage=dataset.Storage("stream"))
    (tmp_path / "train" / "ant" / "0.bmp").unlink()
    with pytest.raises(FileNotFoundError, match="0.bmp"):
        dataset.fingerprint(data)
