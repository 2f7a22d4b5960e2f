"""Files of strangers: one line that names the file and the reason, exit status 2, nothing executed, nothing written."""

import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import fuzz
import hostile
import numpy as np
import pytest
import torch
from conftest import QUICK, ROOT
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

import dataset
import train_student
import train_teacher
import transfer_student
from dataset import Unreadable
from dataset.files import images_below, read
from scripts import unpack

Tree = dict[str, tuple]


def tree(folder: Path) -> Tree:
    """Everything below a folder, and what would show a change."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


def refused(main, arguments: list[str], capsys, *messages: str, status: int = 2) -> str:
    """Runs a script in this process. Returns its one line."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == status and error.count("\n") == 1 and "Traceback" not in error, error
    for message in messages:
        assert re.search(message, error), (message, error)
    return error


# ---- checkpoints ----


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, teacher) -> dict[str, tuple[Path, str]]:
    return hostile.write(tmp_path_factory.mktemp("strangers"), torch.load(teacher, weights_only=True))


TABLES = [hostile.executing(Path()), hostile.bombs(), hostile.broken_tensors(), hostile.broken_safetensors()]


@pytest.mark.parametrize("name", [name for table in TABLES for name in table])
def test_checkpoint(name, checkpoints, capsys, tmp_path):
    path, message = checkpoints[name]
    before = tree(path.parent)
    student = [*QUICK, "--epochs", "1", "--save_folder", str(tmp_path / "save"), "--path_t", str(path)]
    refused(train_student.main, student, capsys, rf"--path_t {path}: .*({message})")
    assert tree(path.parent) == before and not os.listdir(tmp_path)


def test_bombs_take_neither_memory_nor_time(checkpoints, python, tmp_path):
    """In a process that can have 1 GB more than it has, each takes less than a tenth of that."""
    names = list(hostile.bombs())
    for name in names:
        (tmp_path / f"{names.index(name):02}.pth").symlink_to(checkpoints[name][0])
    done = subprocess.run([python, ROOT / "tests" / "hostile.py", tmp_path], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == len(names), done.stderr
    for name, line in zip(names, lines, strict=True):
        seconds, megabytes, told = re.fullmatch(r"([\d.]+) s  (\d+) MB  (.*)", line).groups()
        assert re.search(checkpoints[name][1], told), (name, told)
        assert float(seconds) < 10 and int(megabytes) < 100, (name, line)


def test_a_probe_of_absurdly_many_classes(teacher, tmp_path, capsys):
    """The classifier's rows are the class count of the network that is built."""
    state = torch.load(teacher, weights_only=True)
    state["model"]["fc.weight"] = torch.zeros(10**6, 0)
    torch.save(state, tmp_path / "x.pth")
    refused(transfer_student.main, [*QUICK, "--path_s", str(tmp_path / "x.pth")], capsys, "x.pth: not a resnet14")


@pytest.mark.parametrize(
    "make, message",
    [
        (os.mkfifo, "not a file"),
        (lambda path: path.symlink_to(path), "no such file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    ],
    ids=["pipe", "link to itself", "endless file"],
)
def test_no_files(make, message, tmp_path, capsys):
    for name, flag in {"x.pth": "--path_s", "x.safetensors": "--path_s", "x.json": "--config"}.items():
        make(tmp_path / name)
        arguments = [*QUICK, "--path_s", str(tmp_path / "x.pth"), flag, str(tmp_path / name)]
        refused(transfer_student.main, arguments, capsys, rf"{flag} .*{name}: {message}")


# ---- configs ----

CONFIGS = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff\xfe{}", "not JSON"),
    (b"epochs: 3", "not JSON"),
    (b"{'epochs': 3}", "not JSON"),
    (b"[1]", "expected a JSON object, found list"),
    (b'"epochs"', "expected a JSON object, found str"),
    (b"null", "expected a JSON object, found NoneType"),
    (b"[" * 10**6, "not JSON: maximum recursion depth"),
    (b'{"a":' * 10**5, "not JSON: maximum recursion depth"),
    (b'{"epochs": 1, "epochs": 2}', "not JSON: 'epochs' stands there twice"),
    (b'{"epochs": NaN}', "not JSON: NaN is no number of JSON"),
    (b'{"learning_rate": -Infinity}', "not JSON: -Infinity is no number of JSON"),
    (b'{"learning_rate": 1e999}', "--learning_rate: expected a number above 0, below 2..63, found inf"),
    (b'{"epochs": %s}' % (b"9" * 5000), "not JSON: Exceeds the limit"),
    (b'{"epochs": %s}' % (b"9" * 100), "--epochs: expected a whole number of at least 1, below 2..63"),
    (b'{"epochs": [1, 2]}', "--epochs: expected a whole number of at least 1, found '1,2'"),
    (b'{"epochs": {"a": 1}}', "epochs takes numbers or text, not {'a': 1}"),
    (b'{"epochs": true}', "epochs takes numbers or text, not True"),
    (b'{"epochs": 1.0}', "--epochs: expected a whole number of at least 1, found '1.0'"),
    (b'{"epochs": "1; rm -rf /"}', "--epochs: expected a whole number"),
    (b'{"nesterov": "yes"}', "nesterov is true or false, not 'yes'"),
    (b'{"epoch": 3}', "unknown option 'epoch'; near: epochs"),
    (b'{"Epochs": 3}', "unknown option 'Epochs'; near: epochs"),
    (b'{"help": true}', "unknown option 'help'"),
    (b'{"config": "other.json"}', "unknown option 'config'"),
    (b'{"__class__": 1}', "unknown option '__class__'"),
    (b'{"options": []}', "expected a JSON object of options, found list"),
    (b'{"options": {"options": {}}}', "unknown option 'options'"),
    (b'{"path_t": ["--resume=never"]}', "path_t takes no value that begins with a dash"),
    (b'{"path_t": ["a", ["b"]]}', r"path_t takes numbers or text, not \['b'\]"),
    (b'{"path_t": []}', "--path_t: expected at least one argument"),
    (b'{"run_name": "../../outside"}', "--run_name ../../outside: expected a folder's name"),
    (b'{"run_name": ".."}', "--run_name ..: expected a folder's name"),
    (b'{"run_name": "a\\u0000b"}', "run_name takes numbers or text, not 'a.x00b'"),
    (b'{"run_name": "\\ud800"}', "run_name takes numbers or text"),
    (b'{"run_name": "%s"}' % (b"x" * 300), "--run_name xxx.*: expected a folder's name, of at most 255 bytes"),
    (b'{"trial": "/../../outside", "seed": 1}', "--trial /../../outside: is part of the run"),
    (b'{"beta": [1, "x"]}', "--beta: expected a number of at least 0, found 'x'"),
    (b'{"distill": ["kd", ""]}', "--distill/--kd_method: unknown method ''"),
    (b'{"dataset": "\\u001b[2J"}', r"dataset takes numbers or text, not '\\x1b\[2J'"),
]


@pytest.mark.parametrize("content, message", CONFIGS, ids=[repr(content)[:40] for content, _ in CONFIGS])
def test_config(content, message, teacher, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    save = tmp_path / "save" / "deep"
    arguments = ["--dataset", "digits", "--path_t", str(teacher), "--save_folder", str(save), "--config", str(path)]
    before = tree(tmp_path)
    refused(train_student.main, arguments, capsys, message)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["two\nlines", "a\ttab", "\udcff", "dash -a", "comma,equals="])
def test_a_run_in_an_odd_folder_is_repeated_by_its_options(name, tmp_path):
    folder = tmp_path / name
    command = ["--dataset", "digits", "--limit_train", "10", "--limit_val", "10", "--device", "cpu", "--epochs", "1"]
    train_teacher.main([*command, "--model", "resnet8", "--save_folder", str(folder), "--run_name", "r"])
    options = folder / "models" / "r" / "options.json"
    before = options.read_text()
    train_teacher.main(["--config", str(options), "--resume", "never"])
    assert options.read_text() == before


# ---- images ----


def picture(size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 77).save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A picture that says that it has this size, and has hardly any content."""
    parts = [(b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    framed = (struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


IMAGES = {
    "empty": (b"", "cannot be decoded as an image"),
    "text": (b"<html>moved</html>", "cannot be decoded as an image"),
    "noise": (bytes(range(256)) * 8, "cannot be decoded as an image"),
    "truncated PNG": (picture((64, 64))[:90], "cannot be decoded as an image"),
    "truncated JPEG": (picture((640, 640), "JPEG")[:1500], "cannot be decoded as an image: image file is truncated"),
    "header of a JPEG": (picture(kind="JPEG")[:20], "cannot be decoded as an image"),
    "100000 x 100000": (png(10**5, 10**5), "cannot be decoded as an image"),
    "10000 x 10000": (png(10**4, 10**4), "cannot be decoded as an image: 10000 x 10000 pixels"),
    "1 x 60000": (png(1, 60000), "cannot be decoded as an image: 1 x 60000 pixels"),
    "2**31 x 1": (png(2**31 - 1, 1), "cannot be decoded as an image"),
    "0 x 0": (png(0, 0), "cannot be decoded as an image"),
    "less content than its size": (png(1000, 1000), "cannot be decoded as an image"),
    "packed text": (
        png(8, 8, (b"zTXt", b"k\0\0" + zlib.compress(bytes(2 * 10**8)))),
        "cannot be decoded as an image: Decompressed data too large",
    ),
    "GIF of absurd size": (b"GIF89a\xff\xff\xff\xff\0\0\0", "cannot be decoded as an image"),
    "BMP of absurd size": (b"BM" + bytes(8) + struct.pack("<3I2i", 26, 40, 10**9, 10**9, 24), "cannot be decoded"),
    "TIFF that points nowhere": (b"II*\0" + struct.pack("<I", 2**32 - 1), "cannot be decoded as an image"),
    "TIFF that points to itself": (
        b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<2H2I", 256, 4, 1, 9) + struct.pack("<I", 8),
        "cannot be decoded as an image",
    ),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch executed) (w) file\n",
        "cannot be decoded as an image",
    ),
    "a pickle": (pickle.dumps({"a": 1}), "cannot be decoded as an image"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A data set of two classes."""
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            (tmp_path / "data" / part / name / "1.png").write_bytes(picture())
    return tmp_path / "data"


def on(data: Path, name: str) -> list[str]:
    return f"--dataset {name} --data_folder {data} --save_folder {data.parent}/save --model resnet8 --epochs 1".split()


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", [[], ["--image_size", "96"]], ids=["kept", "streamed"])
def test_image(name, size, folder, capsys):
    content, message = IMAGES[name]
    (folder / "train" / "dog" / "2.png").write_bytes(content)
    before = tree(folder / "train")
    arguments = [*on(folder, "folder"), "--num_workers", "1", *size]
    if size:  # found by a worker, when the run has begun
        with pytest.raises(Unreadable, match=f"dog/2.png: {message}"):
            read(str(folder / "train" / "dog" / "2.png"), 96)
    else:
        refused(train_teacher.main, arguments, capsys, f"--dataset folder: .*dog/2.png: {message}")
        assert not (folder.parent / "save").exists()
    assert tree(folder / "train") == before and not Path("executed").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.touch])
def test_no_image_files(make, folder, capsys):
    make(folder / "train" / "dog" / "2.png")
    refused(train_teacher.main, on(folder, "folder"), capsys, "dog/2.png: cannot be decoded as an image")


def test_images_that_are_odd_but_whole(tmp_path):
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 60000) + b"\xff" * 50
    odd = {
        "cmyk.jpg": picture(kind="JPEG", mode="CMYK"),
        "exif.jpg": picture(kind="JPEG", exif=exif),
        "grey16.png": picture(mode="I;16"),
        "palette.png": picture(mode="P", transparency=b"\x00\x80"),
        "alpha.png": picture(mode="LA"),
        "one_bit.png": picture(mode="1"),
        "animated.gif": picture(kind="GIF", mode="P", save_all=True, append_images=[Image.new("P", (8, 8), 5)] * 3),
        "another_suffix.bmp": picture(kind="WEBP"),
    }
    for name, content in odd.items():
        (tmp_path / name).write_bytes(content)
        assert read(str(tmp_path / name), 6).shape == (6, 6, 3), name


def test_folders_that_lead_in_circles(folder):
    for n in range(8):
        (folder / "train" / "dog" / f"again{n}").symlink_to(folder / "train" / "dog")
    (folder / "train" / "dog" / "up").symlink_to(folder)
    assert len(dataset.load("folder", folder).train_images) == 2


def test_folders_that_lead_to_each_other(folder, tmp_path):
    """Each image once, by the way without links where there is one."""
    dog = folder / "train" / "dog"
    (tmp_path / "outside" / "deeper").mkdir(parents=True)
    (tmp_path / "outside" / "deeper" / "1.png").write_bytes(picture())
    (dog / "b").symlink_to(tmp_path / "outside")
    (dog / "a").symlink_to(tmp_path / "outside" / "deeper")
    for n in range(7):
        (dog / f"{n}").mkdir()
        (dog / f"{n}" / "1.png").write_bytes(picture())
        for other in range(7):
            (dog / f"{n}" / f"to{other}").symlink_to(dog / f"{other}")
    start = time.perf_counter()
    found = [os.path.relpath(image.path, dog) for image in images_below(dog)]
    assert time.perf_counter() - start < 1
    assert sorted(found) == sorted([*(f"{n}/1.png" for n in range(7)), "1.png", "a/1.png"])


def npy(x: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, x, **options)
    return buffer.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, (f"touch {hostile.EXECUTED}",)


def archived(*content: bytes, method: int = zipfile.ZIP_STORED) -> Callable[[Path, str], object]:
    return lambda cache, name: cache.write_bytes(b"".join(hostile.zipped({name: x}, method) for x in content))


HUGE = "{'descr': '%s', 'fortran_order': False, 'shape': (1000000000000, 8, 8, 3), }\n"
CACHES: dict[str, Callable[[Path, str], object]] = {
    "other numbers": archived(npy(np.array(10**9))),
    "other shape": archived(npy(np.zeros((9, 8, 8, 3), np.uint8))),
    "other dtype": archived(npy(np.zeros((2, 8, 8, 3)))),
    "other order": archived(npy(np.asfortranarray(np.zeros((2, 8, 8, 3), np.uint8)))),
    "mean of 2": archived(npy(np.full((2, 3), 2.0))),
    "deviation of 0": archived(npy(np.zeros((2, 3)))),
    "mean that is NaN": archived(npy(np.full((2, 3), np.nan))),
    "size of 0": archived(npy(np.array(0))),
    "objects": archived(npy(np.array(Evil(), dtype=object), allow_pickle=True)),
    "10**12 images": archived(header(HUGE % "|u1")),
    "10**12 objects": archived(header(HUGE % "|O")),
    "header of another version": archived(header(HUGE % "|u1").replace(b"NUMPY\1", b"NUMPY\2")),
    "nested header": archived(header("(" * 9000 + "\n")),
    "code as header": archived(header("__import__('os').system('touch executed')\n")),
    "packed zeros": archived(bytes(10**8), method=zipfile.ZIP_DEFLATED),
    "no array": archived(b""),
    "cut short": lambda cache, name: cache.write_bytes(hostile.zipped({name: npy(np.zeros(384, np.uint8))})[:300]),
    "spoilt": lambda cache, name: cache.write_bytes(
        hostile.zipped({name: npy(np.zeros((2, 8, 8, 3), np.uint8))}).replace(bytes(99), bytes(98) + b"x")
    ),
    "another name": lambda cache, name: cache.write_bytes(hostile.zipped({"x.npy": npy(np.array(8))})),
    "plain array": lambda cache, name: cache.write_bytes(header(HUGE % "|u1")),
    "torch": lambda cache, name: cache.write_bytes(hostile.torch_saved({"key": name[:-4], "made": 8})),
    "a pickle": lambda cache, name: cache.write_bytes(pickle.dumps(Evil())),
    "empty": lambda cache, name: cache.touch(),
    "pipe": lambda cache, name: os.mkfifo(cache),
    "endless": lambda cache, name: cache.symlink_to("/dev/zero"),
}


def test_a_cache_that_came_with_the_images(folder):
    """Its array has the name for these very files, and is another: they are decoded, and little memory is taken."""
    right = dataset.load("folder", folder)
    caches = sorted(folder.glob(".cache-*"))
    assert len(caches) == 4
    names = {cache: zipfile.ZipFile(cache).namelist()[0] for cache in caches}
    for make in CACHES.values():
        for cache, name in names.items():
            cache.unlink()
            make(cache, name)
        tracemalloc.start()
        found = dataset.load("folder", folder)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22 and not Path(hostile.EXECUTED).exists()
        assert torch.equal(found.train_images, right.train_images) and torch.equal(found.val_images, right.val_images)
        assert (found.mean, found.std) == (right.mean, right.std)
        assert all(zipfile.ZipFile(cache).namelist() == [name] for cache, name in names.items())


# ---- data sets of other kinds ----


def test_cifar_batches(tmp_path, capsys):
    """Pickles that are not the published ones are never opened."""
    for name, source in {"cifar10": CIFAR10, "cifar100": CIFAR100}.items():
        place = tmp_path / "data" / source.base_folder
        place.mkdir(parents=True)
        for file in [*(name for name, _ in source.train_list + source.test_list), source.meta["filename"]]:
            (place / file).write_bytes(hostile.pickled(hostile.system(tmp_path)))
        message = f"--dataset {name}: {place}: expected the python batches .*; tried their MD5 sums"
        refused(train_teacher.main, on(place, name), capsys, message)
    assert not (tmp_path / hostile.EXECUTED).exists()


LABELS = npy(np.zeros(2, np.uint8))
SHOWN = npy(np.zeros((2, 32, 32, 3), np.uint8))
ARRAYS = {
    "objects": (npy(np.array([Evil()], dtype=object), allow_pickle=True), LABELS, "Object arrays cannot be loaded"),
    "objects as labels": (SHOWN, npy(np.array([Evil()], dtype=object), allow_pickle=True), "Object arrays cannot be"),
    "a pickle": (pickle.dumps(Evil()), LABELS, "cannot read"),
    "an archive": (hostile.zipped({"a.npy": SHOWN}), LABELS, "found an archive of several"),
    "empty": (b"", LABELS, "cannot read"),
    "truncated": (SHOWN[:1000], LABELS, "cannot read"),
    "code as header": (header("__import__('os').system('touch executed')\n"), LABELS, "cannot read"),
    "nested header": (header("(" * 9000 + "\n"), LABELS, "cannot read"),
    "10**15 images": (
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 32, 32, 3)}\n"),
        LABELS,
        "cannot read",
    ),
    "another shape": (npy(np.zeros((2, 3, 32, 32), np.uint8)), LABELS, r"found uint8 \[2, 3, 32, 32\]"),
    "another type": (npy(np.zeros((2, 32, 32, 3))), LABELS, r"found float64 \[2, 32, 32, 3\]"),
    "labels of another number": (SHOWN, npy(np.zeros(3, int)), r"and int64 \[3\]"),
    "labels that are NaN": (SHOWN, npy(np.full(2, np.nan)), r"and float64 \[2\]"),
    "no dimension": (npy(np.uint8(1)), npy(np.uint8(1)), r"found uint8 \[\]"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_cifar10_1(name, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    *files, message = ARRAYS[name]
    for kind, content in zip(("data", "labels"), files, strict=True):
        (data / f"cifar10.1_v6_{kind}.npy").write_bytes(content)
    refused(train_teacher.main, on(data, "cifar10.1"), capsys, f"--dataset cifar10.1: {data}: .*{message}")
    assert os.listdir(tmp_path) == ["data"] and not Path(hostile.EXECUTED).exists()


ANNOTATIONS = [
    ("wnids.txt", b"\xff\xff\n", "wnids.txt: not a text"),
    ("wnids.txt", b"n01\nn01\nn02\n", "wnids.txt: expected at least 2 different classes"),
    ("wnids.txt", b"n01\n", "wnids.txt: expected at least 2 different classes"),
    ("wnids.txt", b"n01\nn02\n../../etc\n", "expected the 3 classes of wnids.txt; missing ../../etc"),
    ("val/val_annotations.txt", b"\xff\xff\n", "val_annotations.txt: not a text"),
    ("val/val_annotations.txt", b"", "val_annotations.txt: no line for"),
    ("val/val_annotations.txt", b"../../../etc/passwd n01\n", "line 1 names ../../../etc/passwd, not one of images/"),
    ("val/val_annotations.txt", b"val_0.JPEG\n", "line 1 gives val_0.JPEG the class none, not one of wnids.txt"),
    ("val/val_annotations.txt", b"val_0.JPEG n09\n", "line 1 gives val_0.JPEG the class n09"),
    ("val/val_annotations.txt", b"val_0.JPEG n01\n" * 2, "line 2 names val_0.JPEG, not one of images/ or named before"),
]


@pytest.mark.parametrize("file, content, message", ANNOTATIONS)
def test_tinyimagenet(file, content, message, tmp_path, capsys):
    data = tmp_path / "data" / "tiny-imagenet-200"
    for place in ("train/n01/images/a.JPEG", "train/n02/images/a.JPEG", "val/images/val_0.JPEG"):
        (data / place).parent.mkdir(parents=True, exist_ok=True)
        (data / place).write_bytes(picture(kind="JPEG"))
    (data / "wnids.txt").write_text("n01\nn02\n")
    (data / "val" / "val_annotations.txt").write_text("val_0.JPEG n01\n")
    (data / file).write_bytes(content)
    refused(train_teacher.main, on(tmp_path / "data", "tinyimagenet"), capsys, f"--dataset tinyimagenet: .*{message}")


# ---- archives ----


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type, found.linkname = size, kind, to
    return found


def tar(*entries: tarfile.TarInfo) -> bytes:
    """A file that is wanted, then the entries, then another."""
    first, last = entry("a"), entry("z")
    return b"".join(e.tobuf(format=tarfile.GNU_FORMAT) for e in (first, *entries, last)) + bytes(1024)


def zipped_entry(name: str, mode: int) -> bytes:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def twice() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a", "1")
        archive.writestr("a", "2")
    return buffer.getvalue()


def locked() -> bytes:
    """A zip that says that it is encrypted."""
    content = bytearray(hostile.zipped({"a": b"1"}))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


ARCHIVES = {
    "up": (lambda: tar(entry("../../stolen")), "refused, ../../stolen leads out of the folder"),
    "up, in the middle": (lambda: tar(entry("x/../../stolen")), "leads out of the folder"),
    "up, by backslashes": (lambda: hostile.zipped({"..\\stolen": b""}), "leads out of the folder"),
    "absolute": (lambda: tar(entry("/tmp/stolen")), "refused, /tmp/stolen leads out of the folder"),
    "absolute, zip": (lambda: hostile.zipped({"/tmp/stolen": b""}), "leads out of the folder"),
    "link": (lambda: tar(entry("l", kind=tarfile.SYMTYPE, to="/etc")), "refused, l is neither file nor folder"),
    "link, zip": (lambda: zipped_entry("l", 0o120777), "refused, l is neither file nor folder"),
    "hard link": (lambda: tar(entry("l", kind=tarfile.LNKTYPE, to="/etc/passwd")), "neither file nor folder"),
    "pipe": (lambda: tar(entry("p", kind=tarfile.FIFOTYPE)), "neither file nor folder"),
    "device": (lambda: tar(entry("d", kind=tarfile.CHRTYPE)), "neither file nor folder"),
    "device, zip": (lambda: zipped_entry("d", 0o020666), "neither file nor folder"),
    "twice": (lambda: tar(entry("a")), "refused, a comes twice"),
    "twice, zip": (twice, "refused, a comes twice"),
    "twice, by another spelling": (lambda: tar(entry("./a")), "a comes twice"),
    "10 TB": (lambda: tar(entry("big", 10**13)), "refused, it holds more than 1 GB; --limit_gb allows for more"),
    "10 TB of holes": (lambda: tar(entry("big", 10**13, tarfile.GNUTYPE_SPARSE)), "neither file nor folder|more than"),
    "a bomb": (lambda: hostile.zipped({"big": bytes(2 * 10**7)}, zipfile.ZIP_DEFLATED), "more than 0.01 GB"),
    "a gzip bomb": (lambda: gzip.compress(bytes(2 * 10**7)), "more than 0.01 GB"),
    "entries on top of each other": (hostile.overlapping, "more than 0.01 GB"),
    "truncated": (lambda: tar(entry("b", 10**6)), "unexpected end of data"),
    "truncated zip": (lambda: hostile.zipped({"a": bytes(1000)})[:-100], "not a zip file"),
    "another content than its sum": (lambda: hostile.zipped({"a": b"content"}).replace(b"content", b"CONTENT"), "CRC"),
    "encrypted": (locked, "encrypted"),
    "empty": (lambda: b"", "not a zip file"),
    "a page": (lambda: b"<html>moved</html>", "not a zip file"),
    "not gzip": (lambda: b"\x1f\x8b" + bytes(100), "Unknown compression method"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archive(name, tmp_path, capsys):
    make, message = ARCHIVES[name]
    archive, folder = tmp_path / "archive", tmp_path / "in" / "here"
    archive.write_bytes(make())
    folder.mkdir(parents=True)
    limit = "0.01" if "0.01" in message else "1"
    error = refused(unpack.main, [str(archive), str(folder), "--limit_gb", limit], capsys, f"{archive}: .*{message}")
    assert name == "another content than its sum" or not os.listdir(folder), error
    assert sorted(os.listdir(tmp_path)) == ["archive", "in"] and os.listdir(tmp_path / "in") == ["here"]


@pytest.mark.parametrize("pack", [lambda x: x, gzip.compress])
def test_a_good_archive(pack, tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(entry("x", kind=tarfile.DIRTYPE))
        archive.addfile(entry("x/a", 3), io.BytesIO(b"abc"))
    (tmp_path / "archive").write_bytes(pack(content.getvalue()))
    unpack.main([str(tmp_path / "archive"), str(tmp_path)])
    assert (tmp_path / "x" / "a").read_bytes() == b"abc"


# ---- folders of runs ----


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run's folder."""
    save = tmp_path_factory.mktemp("run")
    train_teacher.main([*QUICK, *RUN, "--save_folder", str(save)])
    return save / "models" / "r"


RUN = "--model resnet8 --epochs 1 --run_name r --save_predictions".split()


def changed(path: Path, **values: object) -> None:
    state = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in (state | values).items() if value is not None}, path)


def as_json(name: str, value: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(value))


def as_text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def interrupted(**values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "summary.json").unlink()
        changed(folder / "last.pth", **values)

    return change


SUMMARY = {"epochs": 1, "last_acc": 1.0, "best_epoch": 1, "best_acc": 1.0}
RUNS = {
    "options.json": (as_text("options.json", "{"), "options.json: not JSON"),
    "options.json nested": (as_text("options.json", "[" * 10**6), "options.json: not JSON: maximum recursion"),
    "no options": (as_json("options.json", {}), "options.json: expected options of type dict"),
    "options of another type": (as_json("options.json", {"options": [1]}), "expected options of type dict"),
    "other options": (as_json("options.json", {"options": {"epochs": 10**9}}), "holds a run with other options"),
    "summary.json": (as_text("summary.json", "\0"), "summary.json: not JSON"),
    "no summary": (as_json("summary.json", []), "summary.json: expected a JSON object, found list"),
    "a summary of text": (as_json("summary.json", SUMMARY | {"last_acc": "x"}), "expected last_acc of type float"),
    "a summary with NaN": (as_text("summary.json", '{"last_acc": NaN}'), "NaN is no number of JSON"),
    "no result": (interrupted(options=None), "last.pth: not a checkpoint that a run can go on from"),
    "a path as log": (interrupted(done={"../../x_log.csv": 1}), "not a checkpoint that a run can go on from"),
    "options that are a list": (interrupted(options=[1]), "not a checkpoint that a run can go on from"),
    "keys of two types": (interrupted(options={1: 1, "a": 1}), "holds a run with other options"),
    "no model": (interrupted(model=None), "last.pth: not as this run leaves it"),
    "model of another network": (interrupted(model={"w": torch.zeros(1)}), "last.pth: not as this run leaves it"),
    "epochs of text": (interrupted(done={"log.csv": "x"}), "last.pth: not as this run leaves it"),
    "another log": (interrupted(done={"x_log.csv": 1}), "last.pth: not as this run leaves it"),
    "another random state": (interrupted(rng={"cpu": torch.zeros(3)}), "last.pth: not as this run leaves it"),
    "another optimiser": (
        interrupted(optimizer={"state": {}}, done={"log.csv": 0}, logs={}),
        "not as this run leaves it",
    ),
    "facts of text": (interrupted(facts="x"), "last.pth: not as this run leaves it"),
    "more epochs than rows": (interrupted(done={"log.csv": 3}), "log.csv: expected a row for each of 3 epochs"),
}


@pytest.mark.parametrize("name", RUNS)
def test_run(name, run, tmp_path, capsys):
    change, message = RUNS[name]
    folder = tmp_path / "models" / "r"
    shutil.copytree(run, folder)
    change(folder)
    before = tree(tmp_path)
    refused(train_teacher.main, [*QUICK, *RUN, "--save_folder", str(tmp_path)], capsys, message)
    now = tree(tmp_path)
    others = {path for path in now.keys() | before.keys() if now.get(path) != before.get(path)} - {str(folder)}
    cut = "/log.csv" if name == "another optimiser" else "/events."  # a row of an epoch that is not done
    assert all("/events." in path or cut in path for path in others), others


# ---- anything ----


def test_fuzzing(tmp_path):
    """A short form of `python tests/fuzz.py`, with all that it has found worth keeping."""
    kept = [*fuzz.seeds(), *fuzz.read_corpus(fuzz.CORPUS)]
    found, failures, counts = fuzz.fuzz(2000, 1, tmp_path / "input", kept)
    assert not failures, failures[0]["traceback"]
    assert counts.total() >= 2000 and len(found) > 200
