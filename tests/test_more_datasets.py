"""STL-10, TinyImageNet and CINIC-10: the official layouts, and what is said of broken ones."""

import functools
import hashlib
import shutil
import tarfile
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import STL10
from torchvision.transforms import functional as transforms

import dataset
from dataset import storage

# ---- made-up data in each set's layout ----


def make_stl10(place: Path, patch: pytest.MonkeyPatch) -> Path:
    """Two training and one test image of each class, and a URL where nobody listens; MD5 sums replace the official."""
    rng = np.random.default_rng(0)
    (place / "stl10_binary").mkdir(parents=True)

    def write(name: str, content: np.ndarray) -> list[str]:
        content.tofile(place / "stl10_binary" / name)
        return [name, hashlib.md5(content.tobytes()).hexdigest()]

    def part(name: str, n: int) -> list[list[str]]:
        pixels = rng.integers(0, 256, (10 * n, 3, 96, 96), dtype=np.uint8)
        labels = np.tile(np.arange(1, 11, dtype=np.uint8), n)
        return [write(f"{name}_X.bin", pixels), write(f"{name}_y.bin", labels)]

    patch.setattr(STL10, "train_list", [*part("train", 2), ["unlabeled_X.bin", "0" * 32]])
    patch.setattr(STL10, "test_list", part("test", 1))
    patch.setattr(STL10, "url", "http://127.0.0.1:9/stl10_binary.tar.gz")
    patch.setenv("no_proxy", "*")
    return place


WNIDS = ("n02", "n01", "n03")  # not sorted, as in the official file


def make_tinyimagenet(place: Path) -> Path:
    """`place`/tiny-imagenet-200 with three classes, four training and two validation images of each."""
    rng = np.random.default_rng(0)
    root = place / "tiny-imagenet-200"

    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path, format="JPEG")

    lines = []
    for wnid in WNIDS:
        for i in range(4):
            write(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("n.JPEG\t0\t0\t62\t62\n")
    for i in range(6):
        write(root / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t0\t62\t62\n")
    write(root / "test" / "images" / "test_0.JPEG")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text("n01\tant\n")
    return place


CINIC10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def make_cinic10(place: Path) -> Path:
    """`place`/CINIC-10 with two training images of each class, one in valid and one in test."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 2), ("valid", 1), ("test", 1)):
        for name in CINIC10:
            target = place / "CINIC-10" / part / name
            target.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(target / f"n{i}_{i}.png" if i else target / f"cifar10-{part}-{i}.png")
    return place


# ---- STL-10 ----


def test_stl10_from_a_folder(tmp_path, monkeypatch):
    make_stl10(tmp_path, monkeypatch)
    data = dataset.load("stl10", tmp_path, 96)
    raw = np.fromfile(tmp_path / "stl10_binary" / "train_X.bin", np.uint8).reshape(20, 3, 96, 96)
    assert (data.train_images.numpy() == raw.transpose(0, 1, 3, 2)).all()  # the files go down the columns
    assert data.train_labels.tolist() == list(range(10)) * 2 and data.val_labels.tolist() == list(range(10))
    assert data.classes[0] == "airplane" and data.classes[9] == "truck" and data.padding == 12
    small = dataset.load("stl10", tmp_path)
    plain = transforms.resize(data.val_images.float(), [32, 32], antialias=True)
    assert small.val_images.shape == (10, 3, 32, 32) and (small.val_images - plain).abs().max() <= 1 and small.flip

    inside = (tmp_path / "stl10_binary").rename(tmp_path / "under-another-name")
    assert torch.equal(dataset.load("stl10", str(inside)).train_images, small.train_images)
    (inside / "test_y.bin").write_bytes(b"broken")
    with pytest.raises(FileNotFoundError, match="another-name: expected the binary files train_X.*tried their MD5 sum"):
        dataset.load("stl10", inside)


def test_stl10_download(tmp_path, monkeypatch, capsys):
    server_side = make_stl10(tmp_path / "server", monkeypatch)
    with pytest.raises(FileNotFoundError) as caught:
        dataset.load("stl10", tmp_path / "new")
    assert "train_X.bin, train_y.bin, test_X.bin, test_y.bin; tried to download http://127.0.0.1:9" in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()

    with tarfile.open(server_side / "stl10_binary.tar.gz", "w:gz") as tar:
        tar.add(server_side / "stl10_binary", "stl10_binary")
    md5 = hashlib.md5((server_side / "stl10_binary.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(STL10, "tgz_md5", md5)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=server_side)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(STL10, "url", f"http://127.0.0.1:{server.server_port}/stl10_binary.tar.gz")
        first = dataset.load("stl10", tmp_path / "new")
        server.shutdown()
    assert torch.equal(dataset.load("stl10", tmp_path / "new").val_images, first.val_images)


# ---- TinyImageNet ----


def test_tinyimagenet_from_a_folder(tmp_path):
    root = make_tinyimagenet(tmp_path) / "tiny-imagenet-200"
    data = dataset.load("tinyimagenet", tmp_path)
    assert data.classes == ("n01", "n02", "n03") and data.padding == 8
    assert data.train_images.shape == (12, 3, 64, 64) and data.train_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.val_labels.tolist() == [1, 0, 2, 1, 0, 2]
    for i, path in enumerate(sorted((root / "val" / "images").iterdir())):
        assert torch.equal(data.val_images[i], transforms.pil_to_tensor(Image.open(path)))
    assert torch.equal(data.train_images[0], transforms.pil_to_tensor(Image.open(root / "train/n01/images/n01_0.JPEG")))
    small = dataset.load("tinyimagenet", root, 32)
    plain = transforms.resize(Image.open(root / "val" / "images" / "val_0.JPEG"), [32])
    assert torch.equal(small.val_images[0], transforms.pil_to_tensor(plain)) and small.padding == 4
    assert sorted(path.name for path in root.glob(".*")) == [
        f".cache-{size}-{part}.npz" for size in (32, 64) for part in ("train", "val")
    ]


def test_tinyimagenet_is_decoded_once(tmp_path, monkeypatch):
    make_tinyimagenet(tmp_path)
    first = dataset.load("tinyimagenet", tmp_path)
    monkeypatch.setattr(storage, "decode", lambda *args: pytest.fail("decoded again"))
    table = tmp_path / "tiny-imagenet-200" / "val" / "val_annotations.txt"
    table.write_text(table.read_text().replace("val_0.JPEG\tn02", "val_0.JPEG\tn03"))
    again = dataset.load("tinyimagenet", tmp_path)  # labels are read anew
    assert torch.equal(again.val_images, first.val_images) and again.val_labels.tolist() == [2, 0, 2, 1, 0, 2]


@pytest.mark.parametrize("left_over", [False, True])
def test_tinyimagenet_regrouped(left_over, tmp_path):
    """As the usual scripts leave it: val/<wnid>/ with or without images/ below it, and maybe an empty val/images."""
    root = make_tinyimagenet(tmp_path) / "tiny-imagenet-200"
    expected = dataset.load("tinyimagenet", tmp_path)
    for line in (root / "val" / "val_annotations.txt").read_text().splitlines():
        name, wnid, *_ = line.split("\t")
        target = root / "val" / wnid / ("images" if left_over else "") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / name).rename(target)
    if not left_over:
        (root / "val" / "images").rmdir()
        (root / "val" / "val_annotations.txt").unlink()
    data = dataset.load("tinyimagenet", tmp_path)
    order = expected.val_labels.argsort(stable=True)
    assert torch.equal(data.val_labels, expected.val_labels[order])
    assert torch.equal(data.val_images, expected.val_images[order])
    shutil.rmtree(root / "val" / "n03")
    with pytest.raises(ValueError, match="val: expected the 3 classes of wnids.txt; missing n03, extra none"):
        dataset.load("tinyimagenet", tmp_path)


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text(content)


def edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_text((root / name).read_text().replace(old, new))


def no_images(root: Path) -> None:
    shutil.rmtree(root / "train" / "n03" / "images")


TABLE = "val/val_annotations.txt"


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        (shutil.rmtree, FileNotFoundError, "expected wnids.txt, train/ and val/, here or in .*; found none"),
        (lambda r: (r / "wnids.txt").unlink(), FileNotFoundError, "found test, train, val, words.txt .*get_tinyimage"),
        (lambda r: shutil.rmtree(r / "val"), FileNotFoundError, "expected wnids.txt, train/ and val/"),
        (write("wnids.txt", "n01\nn02\nn01\n"), ValueError, "at least 2 different classes, one a line; found n01, n02"),
        (write("wnids.txt", ""), ValueError, "wnids.txt: expected at least 2 different classes.*; found none"),
        (edit("wnids.txt", "n03", "n04"), ValueError, "train: expected the 3 classes .*; missing n04, extra n03"),
        (no_images, FileNotFoundError, "train/n03: expected at least one image .*; found 1 other files"),
        (lambda r: (r / TABLE).unlink(), FileNotFoundError, "val_annotations.txt: no such file; it names the class"),
        (edit(TABLE, "val_1.JPEG", "val_7.JPEG"), ValueError, "line 2 names val_7.JPEG, not one of images/"),
        (edit(TABLE, "val_1.JPEG", "val_0.JPEG"), ValueError, "line 2 names val_0.JPEG, not one .* or named before"),
        (edit(TABLE, "val_2.JPEG\tn03", "val_2.JPEG\tn09"), ValueError, "line 3 gives val_2.JPEG the class n09, not"),
        (edit(TABLE, "val_0.JPEG\tn02\t0\t0\t62\t62\n", "\n"), ValueError, "line 1 names no image"),
        (edit(TABLE, "val_0.JPEG\tn02\t0\t0\t62\t62\n", ""), ValueError, "no line for val_0.JPEG of images/"),
        (lambda r: shutil.rmtree(r / "val/images"), ValueError, "val: expected a folder for each of .*; found none"),
        (write("val/images/val_3.JPEG", "no image"), ValueError, "val_3.JPEG: cannot be decoded as an image"),
    ],
)
def test_tinyimagenet_errors(spoil, kind, text, tmp_path):
    spoil(make_tinyimagenet(tmp_path) / "tiny-imagenet-200")
    with pytest.raises(kind, match=text) as caught:
        dataset.load("tinyimagenet", tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.glob("*/.cache*-val.npz"))


# ---- CINIC-10 ----


def cinic_part(root: Path, part: str) -> torch.Tensor:
    files = [file for name in CINIC10 for file in sorted((root / part / name).glob("*.png"))]
    return torch.stack([transforms.pil_to_tensor(Image.open(file)) for file in files])


@pytest.mark.parametrize(
    ("name", "train", "val"),
    [
        ("cinic10", ["train"], "test"),
        ("cinic10-enlarged", ["train", "valid"], "test"),
        ("cinic10-valid", ["train"], "valid"),
    ],
)
def test_cinic10_splits(name, train, val, tmp_path):
    root = make_cinic10(tmp_path) / "CINIC-10"
    data = dataset.load(name, tmp_path, storage=dataset.Storage(workers=2))
    assert torch.equal(data.train_images, torch.cat([cinic_part(root, part) for part in train]))
    assert torch.equal(data.val_images, cinic_part(root, val))
    twice = [label for label in range(10) for _ in range(2)]
    assert data.train_labels.tolist() == twice + (list(range(10)) if "valid" in train else [])
    assert data.val_labels.tolist() == list(range(10)) and data.classes == CINIC10
    assert data.mean == (0.4789, 0.4723, 0.4305) and data.std == (0.2421, 0.2383, 0.2587) and data.flip


def test_cinic10_decodes_each_part_once(tmp_path, monkeypatch):
    root = make_cinic10(tmp_path) / "CINIC-10"
    decoded = []
    real = storage.decode
    monkeypatch.setattr(storage, "decode", lambda paths, *args: decoded.append(len(paths)) or real(paths, *args))
    first = dataset.load("cinic10", root)
    assert decoded == [20, 10]
    enlarged = dataset.load("cinic10-enlarged", tmp_path)
    assert decoded == [20, 10, 10] and torch.equal(enlarged.train_images[:20], first.train_images)
    assert torch.equal(dataset.load("cinic10-valid", tmp_path).train_images, first.train_images)
    assert decoded == [20, 10, 10]


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        (shutil.rmtree, FileNotFoundError, "expected train/, valid/ and test/, here or in CINIC-10/; found no"),
        (lambda r: shutil.rmtree(r / "valid"), FileNotFoundError, "expected train/, valid/ .*; found test, train"),
        (lambda r: shutil.rmtree(r / "test/cat"), ValueError, "test: expected the 10 classes of CINIC-10; missing cat"),
        (lambda r: (r / "train/cat").rename(r / "train/lion"), ValueError, "missing cat, extra lion"),
        (write("test/cat/a.png", "no image"), ValueError, "test/cat/a.png: cannot be decoded as an image"),
    ],
)
def test_cinic10_errors(spoil, kind, text, tmp_path):
    spoil(make_cinic10(tmp_path) / "CINIC-10")
    with pytest.raises(kind, match=text) as caught:
        dataset.load("cinic10", tmp_path)
    assert "\n" not in str(caught.value)
