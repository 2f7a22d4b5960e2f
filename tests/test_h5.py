"""`--dataset h5`."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import QUICK

import dataset
import train_teacher

h5py = pytest.importorskip("h5py")


def content(n: int = 12, size: int = 8, classes: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {"images": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), "labels": np.arange(n) % classes}


def write(path: Path, found: dict, **how) -> None:
    with h5py.File(path, "w") as file:
        for key, value in found.items():
            file.create_dataset(key, data=value, **how)


@pytest.fixture
def root(tmp_path) -> Path:
    write(tmp_path / "train.h5", content() | {"classes": ["ant", "bee", "cät"]}, chunks=True, compression="gzip")
    write(tmp_path / "test.h5", content(6))
    return tmp_path


def test_what_is_read(root):
    data, train, val = dataset.load("h5", root), content(), content(6)
    for images, labels, expected in (
        (data.train_images, data.train_labels, train),
        (data.val_images, data.val_labels, val),
    ):
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert np.array_equal(images.permute(0, 2, 3, 1), expected["images"])
        assert np.array_equal(labels, expected["labels"])
    assert data.classes == ("ant", "bee", "cät") and data.padding == 1
    assert np.allclose(data.mean, train["images"].mean((0, 1, 2)) / 255)
    assert np.allclose(data.std, train["images"].std((0, 1, 2)) / 255)


def test_without_names_of_the_classes_and_in_another_size(root):
    write(root / "train.h5", content(size=10))
    data = dataset.load("h5", root, 16)
    assert data.train_images.shape == (12, 3, 16, 16) and data.val_images.shape == (6, 3, 16, 16)
    assert data.classes == ("0", "1", "2") and data.padding == 2


def test_its_digest_is_that_of_the_images(root, tmp_path):
    """Whatever the file's layout is; one pixel makes another."""
    before = dataset.load("h5", root)
    write(root / "train.h5", content() | {"classes": ["ant", "bee", "cät"]})
    assert dataset.fingerprint(dataset.load("h5", root)) == dataset.fingerprint(before)
    other = before.train_images.clone()
    other[0, 0, 0, 0] += 1
    changed = dataset.fingerprint(dataclasses.replace(before, train_images=other))
    assert changed["train images"] != dataset.fingerprint(before)["train images"]


def test_a_run_does_not_go_on_with_other_images(root, capsys):
    command = [*QUICK[2:], "--dataset", "h5", "--data_folder", str(root), "--limit_train", "12", "--limit_val", "6"]
    command += ["--batch_size", "4", "--image_size", "16", "--model", "resnet8", "--epochs", "1", "--run_name", "r"]
    command += ["--save_folder", str(root / "save")]
    train_teacher.main(command)
    (root / "save" / "models" / "r" / "summary.json").unlink()
    write(root / "train.h5", content(12) | {"images": content(24)["images"][12:]} | {"classes": ["ant", "bee", "cät"]})
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train_teacher.main(command)
    assert re.search("on other data: training images; --data_folder", capsys.readouterr().err)


def linked(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["labels"] = content()["labels"]
        file["images"] = h5py.ExternalLink("test.h5", "images")


def virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((12, 8, 8, 3), "uint8")
    layout[:6] = h5py.VirtualSource(path.with_name("test.h5"), "images", (6, 8, 8, 3))
    with h5py.File(path, "w") as file:
        file["labels"] = content()["labels"]
        file.create_virtual_dataset("images", layout)


def outside(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["labels"] = content()["labels"]
        file.create_dataset("images", (12, 8, 8, 3), "uint8", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def claiming(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["labels"] = content()["labels"]
        file.create_dataset("images", (10**6, 224, 224, 3), "uint8", chunks=(1, 224, 224, 3))


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def part(**values):
    return lambda path: write(path, {k: v for k, v in (content() | values).items() if v is not None})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "expected train.h5 and one of val.h5, test.h5"),
        (lambda path: path.write_bytes(b"no such format"), "train.h5: not HDF5, or broken: "),
        (cut_off, "train.h5: not HDF5, or broken: "),
        (part(images=None), "expected a data set 'images'; the file has labels"),
        (part(images=np.zeros((12, 8, 8, 3))), "images: expected 4 dimensions of uint8, found 4 of float64"),
        (part(images=np.zeros((12, 8, 8), np.uint8)), "images: expected 4 dimensions of uint8, found 3"),
        (part(images=np.zeros((12, 8, 9, 3), np.uint8)), r"images: expected \[N, H, H, 3\], found \[12, 8, 9, 3\]"),
        (part(images=np.zeros((12, 3, 8, 8), np.uint8)), r"expected \[N, H, H, 3\], found \[12, 3, 8, 8\]"),
        (part(labels=np.zeros(12)), "labels: expected 1 dimensions of int or uint, found 1 of float64"),
        (part(labels=np.arange(11) % 3), "expected a label for each of 12 images, found 11"),
        (part(labels=np.arange(12) % 3 - 1), "labels: expected each of 0 .. 2, found 3 classes, -1 .. 1"),
        (part(labels=np.arange(12) % 3 * 2), "labels: expected each of 0 .. 2, found 3 classes, 0 .. 4"),
        (part(labels=np.zeros(12, int)), "labels: expected each of 0 .. 1, found 1 classes, 0 .. 0"),
        (part(labels=np.arange(12) % 2), "test.h5: labels: expected 0 .. 1 as in train.h5, found 0 .. 2"),
        (part(classes=["a", "b"]), "train.h5: labels: expected each of 0 .. 1, found 3 classes"),
        (part(classes=np.arange(3)), "classes: expected 1 dimensions of object or bytes, found 1 of int64"),
        (part(classes=[b"\xff", b"b", b"c"]), "train.h5: "),
        (part(**content(size=9)), "test.h5: images: expected the size of train.h5's, or --image_size; found 9 and 8"),
        (linked, "expected a data set 'images'"),
        (virtual, "images: its values are in other files"),
        (outside, "images: its values are in other files"),
        (claiming, "images: claims 150.5 GB, but the file holds 0 bytes of it"),
    ],
)
def test_files_that_are_not_as_they_should_be(spoil, message, root, capsys):
    spoil(root / "train.h5")
    with pytest.raises(SystemExit) as stop:
        train_teacher.main(["--dataset", "h5", "--data_folder", str(root), "--save_folder", str(root / "s")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and not (root / "s").exists()
    assert re.search(f"--dataset h5: {re.escape(str(root))}.*{message}", error), error


def test_without_the_package(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"train.h5: needs the package h5py \(pip install h5py\)"):
        dataset.load("h5", root)
