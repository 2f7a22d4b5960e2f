"""Image files: found below a folder, decoded by several threads."""

import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

_suffixes = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_formats = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
DECODER = 2  # to be raised with any change that gives other pixels: it makes older caches void
_longest = 1000  # times the other side: what is resized by its shortest side must stay small
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are refused
warnings.filterwarnings("ignore", "Palette images with Transparency")  # which is left out


Found = os.DirEntry  # an image's file: its path, and by stat(), asked for where images are kept, whether it has changed


class Unreadable(ValueError):
    """An image that cannot be decoded; the message names its file."""


def by_class(part: Path, ignored: str = "") -> tuple[tuple[str, ...], list[Found], list[int]]:
    """The folders of `part` as class names, every image below them in order of class and name, and its label.

    FileNotFoundError: a class without images. ValueError: fewer than two classes. The folder `ignored` is none.
    """
    folders = (entry.name for entry in os.scandir(part) if entry.is_dir())
    classes = sorted(name for name in folders if not _of_a_system(name) and name != ignored)
    if len(classes) < 2:
        loose = sum(name.lower().endswith(_suffixes) for name in os.listdir(part))
        outside = f", and {loose} images outside, which must be moved into their classes' folders" if loose else ""
        raise ValueError(f"{part}: expected a folder for each of at least 2 classes; found {few(classes)}{outside}")
    files, labels = [], []
    for label, name in enumerate(classes):
        images = sorted(images_below(part / name), key=lambda image: image.path)
        if not images:
            kept = sum(len(names) for _, _, names in os.walk(part / name))
            raise FileNotFoundError(
                f"{part / name}: expected at least one image ({', '.join(_suffixes)}); found {kept} other files"
            )
        files += images
        labels += [label] * len(images)
    return tuple(classes), files, labels


def same_classes(part: Path, found: Sequence[str], expected: Sequence[str], source: str) -> None:
    """Raises ValueError where the classes found in `part` are not those that `source` has."""
    if set(found) != set(expected):
        lost, new = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        raise ValueError(
            f"{part}: expected the {len(expected)} classes of {source}; missing {few(lost)}, extra {few(new)}"
        )


def images_below(place: str | Path) -> Iterator[Found]:
    """In any order, those of each folder once. Links to folders are followed, but not to those that `place` lies in."""
    seen = {str(folder) for folder in Path(os.path.realpath(place)).parents}
    starts = [str(place)]
    for start in starts:
        folders, links = [start], []
        for folder in folders:
            if (real := os.path.realpath(folder)) in seen:
                continue
            seen.add(real)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _of_a_system(entry.name):
                        continue
                    if entry.is_dir():
                        (links if entry.is_symlink() else folders).append(entry.path)
                    elif entry.name.lower().endswith(_suffixes):
                        yield entry
        starts += sorted(links)  # afterwards and in order, so that a folder has the same name every time


def _of_a_system(name: str) -> bool:
    """What archives, file managers and storage boxes add: macOS's "._name.jpg" and "__MACOSX", Synology's "@eaDir"."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def lines_of(path: Path) -> list[str]:
    """Raises ValueError, naming the file, where it is no text."""
    try:
        return path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text: {error}") from error


def few(names: Sequence[str]) -> str:
    return (", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "none"


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """Unreadable for whatever goes wrong in opening or decoding it, and for an image of absurd size."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not a file")  # a pipe would be waited for
        # by content, whatever the name: other formats start other programs, or are not for pictures
        with Image.open(path, formats=_formats) as image:
            width, height = image.size
            if width * height > Image.MAX_IMAGE_PIXELS or max(image.size) > _longest * min(image.size):
                raise ValueError(f"{width} x {height} pixels")
            yield image
    # PIL raises OSError, SyntaxError, struct.error and more, by format and by what is broken.
    except Exception as error:
        raise Unreadable(f"{path}: cannot be decoded as an image: {error}") from error


def rgb(path: str) -> Image.Image:
    """The image in 8-bit RGB. Raises Unreadable.

    Alpha is left out. EXIF data turns no image; TIFF's own orientation, which PIL obeys, does.
    """
    with opened(path) as image:
        return (_grey(image) if image.mode[0] in "IF" else image).convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """8 bits of a grey image that has more: PIL would make white of all above 255.

    ValueError where its values do not say which of them is white.
    """
    tags = getattr(image, "tag_v2", {})
    x = np.asarray(image)
    low, high = x.min().item(), x.max().item()
    if image.mode == "F":
        white = 1
    elif tags and tags[BITSPERSAMPLE][0] > 16:  # 32 bits, of which 8, 16 or all may be in use
        white = 65535 if high > 255 or high == 0 else 0
    else:
        white = 2 ** (tags[BITSPERSAMPLE][0] if tags else 16) - 1
    if not 0 <= low <= high <= white:
        raise ValueError(f"its values go from {low} to {high}; expected floats from 0 to 1 or whole numbers of 16 bits")
    if tags and not tags.get(PHOTOMETRIC_INTERPRETATION, 0):
        x = white - x  # 0 is white
    return Image.fromarray(np.rint(x * np.float32(255) / white).astype(np.uint8))


def read(path: str, size: int, resized: int | None = None) -> np.ndarray:
    """[size, size, 3] uint8: the shortest side resized to `resized` or `size` pixels, then the centre cropped."""
    image = rgb(path)
    if min(image.size) != (resized or size):
        image = transforms.resize(image, [resized or size])
    return np.asarray(image if image.size == (size, size) else transforms.center_crop(image, [size, size]))


def no_bar(things: Iterable, total: int) -> Iterable:
    return things


def decode(paths: list[str], size: int, workers: int, bar: Callable[[Iterable, int], Iterable] = no_bar) -> Tensor:
    """[N, 3, size, size] uint8 (in channels_last order) by `workers` threads, each image as `read` gives it.

    bar: shows how far an iteration is.
    """
    pixels = torch.empty(len(paths), size, size, 3, dtype=torch.uint8)

    def fill(path: str, out: np.ndarray) -> None:
        out[:] = read(path, size)

    with ThreadPoolExecutor(workers) as pool:
        for _ in bar(pool.map(fill, paths, pixels.numpy()), len(paths)):
            pass
    return pixels.permute(0, 3, 1, 2)
