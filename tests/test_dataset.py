"""Data sets, their files and their errors; subsets, augmentation, order and resumption of the batches."""

import functools
import hashlib
import io
import os
import pickle
import shutil
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_more_datasets import make_cinic10, make_stl10, make_tinyimagenet
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms import functional as transforms

import dataset
from dataset import storage as storage_module

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def some_images(n: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---- made-up data in each set's layout ----


def make_cifar(source: type[CIFAR10], place: Path, patch: pytest.MonkeyPatch) -> Path:
    """Small files in the official layout, and their archive, which is returned; their MD5 sums replace the official."""
    classes = ["apple", "bear"] if source is CIFAR100 else ["cat", "dog"]
    rng = np.random.default_rng(0)
    tree = place / source.base_folder
    tree.mkdir(parents=True)

    def write(name: str, content: dict) -> list[str]:
        data = pickle.dumps(content, protocol=2)
        (tree / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch(n: int) -> dict:
        key = "fine_labels" if source is CIFAR100 else "labels"
        return {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), key: [i % 2 for i in range(n)]}

    patch.setattr(source, "train_list", [write(name, batch(6)) for name, _ in source.train_list])
    patch.setattr(source, "test_list", [write(name, batch(4)) for name, _ in source.test_list])
    name, md5 = write(source.meta["filename"], {source.meta["key"]: classes})
    patch.setattr(source, "meta", {**source.meta, "md5": md5})
    archive = place / source.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tree, arcname=tree.name)
    patch.setattr(source, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    patch.setattr(source, "url", "http://127.0.0.1:9/" + source.filename)  # a port where nobody listens
    patch.setenv("no_proxy", "*")
    return archive


def make_tree(root: Path, size: tuple[int, int] = (8, 8), val: str = "val") -> Path:
    rng = np.random.default_rng(0)
    for part, n in (("train", 3), (val, 2)):
        for name in ("ant", "bee"):
            for i in range(n):
                path = root / part / name / ("deep/er" if i == 0 else "") / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return root


def make_h5(place: Path) -> Path:
    h5py, rng = pytest.importorskip("h5py"), np.random.default_rng(0)
    for part, n in (("train", 6), ("val", 4)):
        with h5py.File(place / f"{part}.h5", "w") as file:
            file["images"] = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
            file["labels"] = np.arange(n) % 2
    return place


def make_cifar10_1(place: Path, patch: pytest.MonkeyPatch, version: str = "v6") -> Path:
    """CIFAR-10 as above, and three images more in the layout of CIFAR-10.1."""
    make_cifar(CIFAR10, place, patch)
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.save(place / f"cifar10.1_{version}_data.npy", images)
    np.save(place / f"cifar10.1_{version}_labels.npy", np.array([1, 0, 1], dtype=np.int32))
    return place


MAKERS = {
    "cifar10": lambda place, patch: make_cifar(CIFAR10, place, patch).parent,
    "cifar10.1": make_cifar10_1,
    "cifar10.1-v4": lambda place, patch: make_cifar10_1(place, patch, "v4"),
    "cifar100": lambda place, patch: make_cifar(CIFAR100, place, patch).parent,
    "cinic10": lambda place, patch: make_cinic10(place),
    "cinic10-enlarged": lambda place, patch: make_cinic10(place),
    "cinic10-valid": lambda place, patch: make_cinic10(place),
    "digits": lambda place, patch: place,
    "folder": lambda place, patch: make_tree(place),
    "h5": lambda place, patch: make_h5(place),
    "imagenet": lambda place, patch: make_tree(place),
    "stl10": make_stl10,
    "tinyimagenet": lambda place, patch: make_tinyimagenet(place),
}


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize("name", dataset.dataset_names())
def test_every_data_set(name, size, tmp_path, monkeypatch):
    data = dataset.load(name, MAKERS[name](tmp_path, monkeypatch), size)
    for images, labels in ((data.train_images, data.train_labels), (data.val_images, data.val_labels)):
        assert (next(iter(images.split(1))).dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert images.shape[:2] == (len(labels), 3) and images.shape[2] == images.shape[3]
        assert size in (None, images.shape[2])
        assert labels.unique().tolist() == list(range(len(data.classes)))
    assert len(data.mean) == len(data.std) == 3 and all(0 < x < 1 for x in data.mean + data.std)
    assert data.padding == data.train_images.shape[-1] // 8
    assert data.flip == (name != "digits")


def test_unknown_names_and_bad_numbers(tmp_path):
    with pytest.raises(ValueError, match="unknown data set 'cifar1000'; near: .*cifar100"):
        dataset.load("cifar1000", tmp_path)
    with pytest.raises(ValueError, match="--image_size: expected at least 1 pixel, found 0"):
        dataset.load("digits", tmp_path, 0)
    with pytest.raises(ValueError, match=r"--limit_train: expected 10 \(one a class\) to 1400 \(all\) .* found 9"):
        dataset.load("digits", tmp_path, limit_train=9)
    with pytest.raises(ValueError, match=r"--limit_val: expected 10 .* to 397 .* found 398"):
        dataset.load("digits", tmp_path, limit_val=398)


# ---- digits ----


def test_digits():
    data = dataset.load("digits", "nowhere")
    assert data.train_images.shape == (1400, 3, 32, 32) and data.val_images.shape == (397, 3, 32, 32)
    assert data.train_labels.bincount().tolist() == [140] * 10 and data.val_labels.bincount().min() >= 34
    assert data.train_images.min() == 0 and data.train_images.max() == 255
    pixels = data.train_images.double() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(data.mean).double(), atol=1e-6)
    assert torch.allclose(pixels.std((0, 2, 3), correction=0), torch.tensor(data.std).double(), atol=1e-6)
    # The file's 1,797 distinct images, as grey in three channels and bilinear.
    file = np.load(Path(dataset.__file__).with_name("digits.npz"))
    assert file["images"].max() == 16 and len(np.unique(file["images"].reshape(1797, 64), axis=0)) == 1797
    grey = torch.from_numpy(file["images"][:1400])[:, None] * (255 / 16)
    plain = torch.nn.functional.interpolate(grey, (32, 32), mode="bilinear", align_corners=False)
    assert (plain - data.train_images).abs().max() <= 1.5
    small = dataset.load("digits", "nowhere", limit_train=100, limit_val=25)
    assert small.train_labels.bincount().tolist() == [10] * 10 and len(small.val_images) == 25


# ---- CIFAR ----


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_cifar_from_a_folder(source, tmp_path, monkeypatch):
    make_cifar(source, tmp_path, monkeypatch).unlink()
    name = source.__name__.lower()
    data = dataset.load(name, tmp_path)
    same = source(tmp_path, train=True)
    assert len(data.train_images) == 6 * len(source.train_list) and len(data.val_images) == 4
    assert (data.train_images.permute(0, 2, 3, 1).numpy() == same.data).all()
    assert data.train_labels.tolist() == same.targets and data.classes == tuple(same.classes)

    inside = (tmp_path / source.base_folder).rename(tmp_path / "under-another-name")
    assert torch.equal(dataset.load(name, str(inside)).train_images, data.train_images)
    (inside / source.test_list[0][0]).write_bytes(b"broken")
    with pytest.raises(FileNotFoundError, match="under-another-name: expected the python batches .*tried their MD5"):
        dataset.load(name, inside)


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_cifar_download(source, tmp_path, monkeypatch, capsys):
    archive = make_cifar(source, tmp_path / "server", monkeypatch)
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=archive.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(source, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        name, place = source.__name__.lower(), tmp_path / "new" / "data"
        first = dataset.load(name, place)
        assert asked and (place / source.base_folder / source.test_list[0][0]).is_file()
        asked.clear()
        second = dataset.load(name, place)
        assert not asked and torch.equal(first.val_images, second.val_images)
        # Half-extracted: mended from the archive that is there.
        (place / source.base_folder / source.train_list[0][0]).unlink()
        dataset.load(name, place)
        assert not asked
        # Another file than the published one is refused.
        monkeypatch.setattr(source, "tgz_md5", "0" * 32)
        with pytest.raises(FileNotFoundError, match="tried to download http://127.0.0.1"):
            dataset.load(name, tmp_path / "other")
        server.shutdown()


def test_cifar_without_files_or_network(tmp_path, monkeypatch):
    make_cifar(CIFAR100, tmp_path / "elsewhere", monkeypatch)
    missing = tmp_path / "data"
    with pytest.raises(FileNotFoundError) as caught:
        dataset.load("cifar100", missing)
    text = str(caught.value)
    assert f"{missing}/cifar-100-python: expected the python batches train, test; tried to download http://" in text
    assert "\n" not in text and not missing.exists()


# ---- CIFAR-10.1 ----


def test_cifar10_1(tmp_path, monkeypatch):
    make_cifar10_1(tmp_path, monkeypatch)
    data, plain = dataset.load("cifar10.1", tmp_path), dataset.load("cifar10", tmp_path)
    images = np.load(tmp_path / "cifar10.1_v6_data.npy")
    assert (data.val_images.permute(0, 2, 3, 1).numpy() == images).all() and data.val_labels.tolist() == [1, 0, 1]
    assert torch.equal(data.train_images, plain.train_images) and (data.mean, data.std) == (plain.mean, plain.std)
    clone = tmp_path / "CIFAR-10.1" / "datasets"  # of the official repository
    clone.mkdir(parents=True)
    for kind in ("data", "labels"):
        (tmp_path / f"cifar10.1_v6_{kind}.npy").rename(clone / f"cifar10.1_v6_{kind}.npy")
    assert torch.equal(dataset.load("cifar10.1", tmp_path).val_images, data.val_images)
    with pytest.raises(FileNotFoundError, match="expected cifar10.1_v4_data.npy and cifar10.1_v4_labels.npy, here or"):
        dataset.load("cifar10.1-v4", tmp_path)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.array([1, 0]), r"expected .*found uint8 \[3, 32, 32, 3\] and int64 \[2\]"),
        (np.array([1.0, 0.0, 1.0]), r"float64 \[3\]"),
        (np.array([], dtype=np.int64), r"int64 \[0\]"),
        (np.array(1), r"int64 \[\]"),
        (np.array([1, 2, 1]), "labels.npy: expected labels from 0 to 1, found others"),
        (np.array([None] * 3), "cannot read .*allow_pickle"),
    ],
)
def test_cifar10_1_errors(labels, text, tmp_path, monkeypatch):
    make_cifar10_1(tmp_path, monkeypatch)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", labels, allow_pickle=True)
    with pytest.raises(ValueError, match=text) as caught:
        dataset.load("cifar10.1", tmp_path)
    assert "\n" not in str(caught.value)


# ---- folder ----


def test_folder_reads_a_tree(tmp_path):
    make_tree(tmp_path, val="test")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "ant" / "._0.png").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "README").write_text("no class")
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "train" / "bee" / "9.BMP")
    data = dataset.load("folder", tmp_path)
    assert data.classes == ("ant", "bee") and data.train_images.shape == (7, 3, 8, 8)
    assert data.train_labels.tolist() == [0] * 3 + [1] * 4 and data.val_labels.tolist() == [0, 0, 1, 1]
    names = ["ant/1.png", "ant/2.png", "ant/deep/er/0.png", "bee/1.png", "bee/2.png", "bee/9.BMP", "bee/deep/er/0.png"]
    for name, image in zip(names, data.train_images, strict=True):
        plain = transforms.pil_to_tensor(Image.open(tmp_path / "train" / name).convert("RGB"))
        assert torch.equal(image, plain)
    pixels = data.train_images.double() / 255
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(data.mean).double())
    assert torch.allclose(pixels.std((0, 2, 3), correction=0), torch.tensor(data.std).double())
    make_tree(tmp_path, val="val")
    assert len(dataset.load("folder", tmp_path).val_images) == 4


def test_what_systems_add_is_passed_over(tmp_path):
    expected = dataset.load("folder", make_tree(tmp_path / "plain"))
    root = make_tree(tmp_path / "tree")
    image = (root / "val" / "ant" / "1.png").read_bytes()
    for place in (root, root / "train", root / "val", root / "train" / "ant", root / "val" / "bee" / "deep"):
        for folder in ("__MACOSX", "__MACOSX/ant", ".Trashes", ".ipynb_checkpoints", "@eaDir/1.png"):
            (place / folder).mkdir(parents=True)
            for name in ("1.png", "._1.png"):
                (place / folder / name).write_bytes(image)
        for name in (".DS_Store", "._.DS_Store", "Thumbs.db", "desktop.ini", "._1.png"):
            (place / name).write_bytes(b"no image")
    data = dataset.load("folder", root)
    assert data.classes == ("ant", "bee")
    assert torch.equal(data.train_images, expected.train_images) and torch.equal(data.val_images, expected.val_images)
    assert torch.equal(data.train_labels, expected.train_labels) and torch.equal(data.val_labels, expected.val_labels)


def test_folder_sizes(tmp_path):
    assert dataset.load("folder", make_tree(tmp_path / "a", (64, 64))).train_images.shape[-1] == 64
    assert dataset.load("folder", make_tree(tmp_path / "b", (65, 65))).train_images.shape[-1] == 32
    make_tree(tmp_path / "c", (8, 8))
    Image.new("RGB", (9, 9)).save(tmp_path / "c" / "val" / "bee" / "1.png")
    assert dataset.load("folder", tmp_path / "c").train_images.shape[-1] == 32
    wide = make_tree(tmp_path / "d", (60, 40))
    data = dataset.load("folder", wide, 16)
    image = Image.open(wide / "train" / "ant" / "1.png")
    plain = transforms.pil_to_tensor(transforms.center_crop(transforms.resize(image, 16), 16))
    assert torch.equal(data.train_images[0], plain)
    assert dataset.load("folder", wide).train_images.shape[-1] == 32
    assert sorted(path.name for path in wide.glob(".cache*")) == [
        *(f".cache-16-{kept}.npz" for kept in ("mean-std", "train", "val")),
        *(f".cache-32-{kept}.npz" for kept in ("mean-std", "train", "val")),
        ".cache-size.npz",
    ]


def test_folder_cache(tmp_path, monkeypatch):
    root = make_tree(tmp_path / "tree")
    decoded = []
    real = storage_module.decode
    monkeypatch.setattr(storage_module, "decode", lambda *args: decoded.append(1) or real(*args))

    def load(place: Path = root) -> dataset.ImageSet:
        decoded.clear()
        return dataset.load("folder", place)

    first = load()
    assert decoded
    again = load()
    assert not decoded and torch.equal(again.train_images, first.train_images) and again.classes == first.classes
    assert torch.equal(again.val_images, first.val_images) and (again.mean, again.std) == (first.mean, first.std)
    monkeypatch.chdir(root)
    assert load(Path(".")) and not decoded
    assert load(root.rename(tmp_path / "moved")) and not decoded
    root = tmp_path / "moved"

    os.utime(root / "val" / "bee" / "1.png", (1, 1))
    load(root)
    assert decoded
    shutil.copy(root / "val" / "bee" / "1.png", root / "val" / "bee" / "7.png")
    assert len(load(root).val_images) == 5 and decoded
    cache = root / ".cache-8-train.npz"
    names = sorted(path.name for path in root.glob(".cache*"))
    for broken in (cache.read_bytes()[:500], b"", b"text", pickle.dumps({"key": 1}, protocol=2)):
        cache.write_bytes(broken)
        assert len(load(root).val_images) == 5 and decoded
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    cache.write_bytes(buffer.getvalue())
    assert load(root) and decoded
    assert load(root) and not decoded
    assert sorted(path.name for path in root.glob(".cache*")) == names

    cache.unlink()
    cache.mkdir()  # for root too, a place where no file can be written
    with pytest.warns(UserWarning, match="cache-8-train.npz cannot be written, images are decoded at every start"):
        assert len(load(root).val_images) == 5 and decoded
    assert sorted(path.name for path in root.glob(".cache*")) == names


def test_folder_is_never_left_half_written(tmp_path, monkeypatch):
    def full(file, **content):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="No space left"):
        dataset.load("folder", make_tree(tmp_path))
    assert not list(tmp_path.glob(".cache*"))


def one_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "bee")


def empty_class(root: Path) -> None:
    shutil.rmtree(root / "train" / "bee")
    (root / "train" / "bee").mkdir()


def class_of_texts(root: Path) -> None:
    empty_class(root)
    (root / "train" / "bee" / "a.txt").write_text("no image")


def other_classes(root: Path) -> None:
    (root / "val" / "bee").rename(root / "val" / "cow")


def broken_image(root: Path) -> None:
    (root / "val" / "bee" / "1.png").write_bytes(b"no image")


def short_image(root: Path) -> None:
    path = root / "val" / "bee" / "1.png"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        (shutil.rmtree, FileNotFoundError, r"tree: expected a folder that holds train/ and val/ .*; found none"),
        (lambda r: shutil.rmtree(r / "train"), FileNotFoundError, "tree: expected train/ and one of .*; found val"),
        (lambda r: shutil.rmtree(r / "val"), FileNotFoundError, "tree: expected train/ and one of .*; found train"),
        (one_class, ValueError, "train: expected a folder for each of at least 2 classes; found ant"),
        (empty_class, FileNotFoundError, "train/bee: expected at least one image .*; found 0 other files"),
        (class_of_texts, FileNotFoundError, "train/bee: expected at least one image .*; found 1 other files"),
        (other_classes, ValueError, "val: expected the 2 classes of train/; missing bee, extra cow"),
        (broken_image, ValueError, "val/bee/1.png: cannot be decoded as an image"),
        (short_image, ValueError, "val/bee/1.png: cannot be decoded as an image"),
    ],
)
def test_folder_errors(spoil, kind, text, tmp_path):
    root = make_tree(tmp_path / "tree")
    spoil(root)
    for size in (None, 16):
        with pytest.raises(kind, match=text) as caught:
            dataset.load("folder", root, size)
        assert "\n" not in str(caught.value)
    assert not list(root.glob(".cache*-val.npz"))


# ---- subsets ----


def test_limit():
    labels = torch.randint(7, (1000,), generator=torch.Generator().manual_seed(0))
    images = torch.arange(1000)
    for n in (7, 10, 100, 699, 1000):
        chosen, its_labels = dataset.limit(images, labels, n)
        assert len(chosen) == n and torch.equal(its_labels, labels[chosen])
        assert (chosen.diff() > 0).all()
        count = its_labels.bincount(minlength=7)
        short = count == labels.bincount()  # a class that is used up may give less
        assert count.max() - count[~short].min() <= 1 if not short.all() else n == 1000
        assert torch.equal(chosen, dataset.limit(images, labels, n)[0])
    assert not torch.equal(dataset.limit(images, labels, 100, seed=1)[0], dataset.limit(images, labels, 100)[0])
    assert set(dataset.limit(images, labels, 50)[0].tolist()) < set(dataset.limit(images, labels, 60)[0].tolist())
    for n in (0, 6, 1001):
        with pytest.raises(ValueError, match=rf"expected 7 \(one a class\) to 1000 \(all\) samples, found {n}"):
            dataset.limit(images, labels, n)
    uneven = torch.tensor([0] * 2 + [1] * 50 + [2] * 50)
    assert dataset.limit(torch.arange(102), uneven, 62)[1].bincount().tolist() == [2, 30, 30]


# ---- augmentation ----


@pytest.mark.parametrize(("padding", "flip", "shape"), [(4, True, (32, 32)), (2, False, (8, 12)), (0, True, (5, 5))])
def test_augment_equals_torchvision(padding, flip, shape):
    images = some_images(9, 40)[:, :, : shape[0], : shape[1]]
    augment = dataset.InMemory(images, MEAN, STD, padding=padding, flip=flip)
    side = 2 * padding + 1
    assert augment.outcomes == side**2 * (1 + flip)
    views = torch.arange(augment.outcomes)
    index = views % 9
    result = augment(index, views)
    assert result.dtype == torch.float32 and result.shape == (len(views), 3, *shape)
    assert result.is_contiguous(memory_format=torch.channels_last)
    for i, view, mine in zip(index, views.tolist(), result, strict=True):
        image = transforms.pad(transforms.to_pil_image(images[i]), padding)
        corner = view // 2 if flip else view
        image = transforms.crop(image, corner // side, corner % side, *shape)
        if flip and view % 2:
            image = transforms.hflip(image)
        plain = transforms.normalize(transforms.to_tensor(image), MEAN, STD)
        torch.testing.assert_close(mine, plain, rtol=1e-6, atol=1e-6)


def test_draws_are_uniform():
    augment = dataset.InMemory(some_images(2), MEAN, STD)
    views = augment.draw(162 * 1000, torch.Generator().manual_seed(0))
    assert views.dtype == torch.int64 and views.min() == 0 and views.max() == 161
    count = views.bincount(minlength=162).double()
    # chi-square of 161 degrees of freedom: mean 161, standard deviation 18
    assert 161 - 4 * 18 < ((count - 1000) ** 2 / 1000).sum() < 161 + 4 * 18


# ---- batches ----


def some_batches(n: int = 50, size: int = 8, seed: int = 1, wrap=lambda augment: augment, **more) -> dataset.Batches:
    augment = dataset.InMemory(some_images(n, 8), MEAN, STD, padding=1)
    return dataset.Batches(wrap(augment), torch.arange(n) % 5, size, seed=seed, **more)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


def test_batches_give_every_sample_once():
    batches = some_batches()
    steps = list(batches.epoch(1))
    assert batches.n_data == 50 and len(batches) == len(steps) == 7
    assert [len(step.index) for step in steps] == [8] * 6 + [2]
    index = torch.cat([step.index for step in steps])
    assert sorted(index.tolist()) == list(range(50)) and index.tolist() != list(range(50))
    assert all(torch.equal(step.labels, step.index % 5) for step in steps)
    assert all(step.images.is_contiguous(memory_format=torch.channels_last) for step in steps)
    # Each image is one of the views of the sample that `index` names.
    views = torch.arange(batches.augment.outcomes)
    for image, i in zip(steps[0].images, steps[0].index, strict=True):
        assert any(torch.equal(image, view) for view in batches.augment(i.expand(len(views)), views))


def test_last_batch():
    assert [len(step.index) for step in some_batches(49).epoch(1)] == [8] * 6  # one sample alone is left out
    assert len(some_batches(49)) == 6
    dropped = some_batches(50, drop_last=True)
    assert [len(step.index) for step in dropped.epoch(1)] == [8] * 6 and len(dropped) == 6
    assert len(some_batches(48, drop_last=True)) == 6
    assert len(some_batches(7)) == 1
    for n, more in ((1, {}), (7, {"drop_last": True})):
        with pytest.raises(ValueError, match=f"{n} samples leave no batch of 8"):
            some_batches(n, **more)


def test_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(0)
    whole = list(some_batches().epoch(3))
    torch.manual_seed(5)
    batches = some_batches()
    list(batches.epoch(7))
    resumed = list(batches.epoch(3, start_step=4))
    assert len(resumed) == 3 and all(same(a, b) for a, b in zip(whole[4:], resumed, strict=True))
    assert all(same(a, b) for a, b in zip(whole, batches.epoch(3), strict=True))
    assert not list(batches.epoch(3, start_step=7))
    orders = {
        tuple(torch.cat([step.index for step in some_batches(seed=seed).epoch(epoch)]).tolist())
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_epochs_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(some_batches().epoch(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_views_of_a_method():
    class Two(dataset.Views):
        def draw(self, n, generator):
            return torch.stack([self.augment.draw(n, generator) for _ in range(2)], 1)

        def stream(self, index, view, steps):
            for both in zip(*(self.augment.stream(index, one, steps) for one in view.unbind(1)), strict=True):
                yield torch.stack(both, 1)

    batches = some_batches(wrap=Two)
    steps = list(batches.epoch(2))
    assert steps[0].images.shape == (8, 2, 3, 8, 8) and steps[-1].images.shape == (2, 2, 3, 8, 8)
    assert not torch.equal(steps[0].images[:, 0], steps[0].images[:, 1])
    assert all(same(a, b) for a, b in zip(steps[2:], batches.epoch(2, start_step=2), strict=True))


def test_val_batches():
    images, labels = some_images(21), torch.arange(21) % 3
    batches = dataset.ValBatches(images, labels, 8, MEAN, STD, device="cpu")
    for _ in range(2):
        steps = list(batches)
        assert [len(step.index) for step in steps] == [8, 8, 5] and len(batches) == 3 and batches.n_data == 21
        assert torch.cat([step.index for step in steps]).tolist() == list(range(21))
        assert torch.equal(torch.cat([step.labels for step in steps]), labels)
        plain = transforms.normalize(images / 255, MEAN, STD)
        torch.testing.assert_close(torch.cat([step.images for step in steps]), plain, rtol=1e-6, atol=1e-6)
        assert all(step.images.is_contiguous(memory_format=torch.channels_last) for step in steps)


def test_several_steps_made_at_once_are_the_same_steps():
    """As on a GPU, also where a process has a part of each."""
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    augments = [dataset.InMemory(images, (0.5,) * 3, (0.25,) * 3, padding=1) for _ in range(2)]
    augments[1].steps_at_once = 3
    for part in ((0, 1), (1, 2)):
        sets = [dataset.Batches(augment, torch.arange(20) % 4, 5, seed=3, part=part) for augment in augments]
        for first in (0, 1, 3):
            one, several = (list(batches.epoch(2, first)) for batches in sets)
            assert len(one) == len(several) == 4 - first
            for a, b in zip(one, several, strict=True):
                assert torch.equal(a.images, b.images) and torch.equal(a.index, b.index)
                assert torch.equal(a.labels, b.labels) and a.images.stride() == b.images.stride()
