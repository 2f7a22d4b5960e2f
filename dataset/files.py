"""Finds image files below a folder, and decodes them with several threads."""

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
DECODER = 2  # increase it with any change of pixels: this invalidates older caches
_longest = 1000  # largest ratio of sides: images are resized by their shortest side and must stay small
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # such images are refused
warnings.filterwarnings("ignore", "Palette images with Transparency")  # transparency is ignored


Found = os.DirEntry  # an image file: its path, and stat(), which tells caches whether it changed


class Unreadable(ValueError):
    """An image that cannot be decoded. The message names its file."""


def by_class(part: Path, ignored: str = "") -> tuple[tuple[str, ...], list[Found], list[int]]:
    """Finds the images of each class.

    Args:
        part: a folder with a folder for each class.
        ignored: a folder that is not a class.

    Returns:
        Class names, every image below them in order of class and name, and its label.

    Raises:
        FileNotFoundError: a class has no images.
        ValueError: there are fewer than two classes.
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
    """Raises ValueError if the classes found in `part` differ from those of `source`."""
    if set(found) != set(expected):
        lost, new = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        raise ValueError(
            f"{part}: expected the {len(expected)} classes of {source}; missing {few(lost)}, extra {few(new)}"
        )


def images_below(place: str | Path) -> Iterator[Found]:
    """All images below `place`, in any order, each folder once.

    Follows links to folders, except to those that contain `place`.
    """
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
        starts += sorted(links)  # last and sorted, so that a folder is found by the same path every time


def _of_a_system(name: str) -> bool:
    """Whether archivers, file managers or storage systems add such a file: macOS's "._name.jpg", "__MACOSX", Synology's
    "@eaDir".
    """
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def lines_of(path: Path) -> list[str]:
    """The lines of a text file. Raises ValueError, naming the file, if it is not text."""
    try:
        return path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text: {error}") from error


def few(names: Sequence[str]) -> str:
    """The first five names, and the number of others."""
    if not names:
        return "none"
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


@contextmanager
def opened(path: str) -> Iterator[Image.Image]:
    """Opens an image. Raises Unreadable for any error in opening or decoding it, and for extreme sizes."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("not a file")  # opening a pipe would block
        # by content, not by name: PIL's other formats start other programs, or are not for pictures
        with Image.open(path, formats=_formats) as image:
            width, height = image.size
            if width * height > Image.MAX_IMAGE_PIXELS or max(image.size) > _longest * min(image.size):
                raise ValueError(f"{width} x {height} pixels")
            yield image
    # PIL raises OSError, SyntaxError, struct.error and more
    except Exception as error:
        raise Unreadable(f"{path}: cannot be decoded as an image: {error}") from error


def rgb(path: str) -> Image.Image:
    """The image in 8-bit RGB, without alpha. Raises Unreadable.

    EXIF orientation is ignored. TIFF's own orientation is applied, by PIL.
    """
    with opened(path) as image:
        return (_grey(image) if image.mode[0] in "IF" else image).convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Scales a grey image of more than 8 bits to 8 bits. PIL would turn everything above 255 white.

    Raises ValueError if the values do not tell which one is white.
    """
    tags = getattr(image, "tag_v2", {})
    x = np.asarray(image)
    low, high = x.min().item(), x.max().item()
    if image.mode == "F":
        white = 1
    elif tags and tags[BITSPERSAMPLE][0] > 16:  # 32 bits, of which files use 8, 16 or all
        white = 65535 if high > 255 or high == 0 else 0
    else:
        white = 2 ** (tags[BITSPERSAMPLE][0] if tags else 16) - 1
    if not 0 <= low <= high <= white:
        raise ValueError(f"its values go from {low} to {high}; expected floats from 0 to 1 or whole numbers of 16 bits")
    if tags and not tags.get(PHOTOMETRIC_INTERPRETATION, 0):
        x = white - x  # 0 is white
    return Image.fromarray(np.rint(x * np.float32(255) / white).astype(np.uint8))


def read(path: str, size: int, resized: int | None = None) -> np.ndarray:
    """[size, size, 3] uint8: resizes the shortest side to `resized` or `size` pixels, then crops the centre."""
    image = rgb(path)
    if min(image.size) != (resized or size):
        image = transforms.resize(image, [resized or size])
    return np.asarray(image if image.size == (size, size) else transforms.center_crop(image, [size, size]))


def no_bar(things: Iterable, total: int) -> Iterable:
    return things


def decode(paths: list[str], size: int, workers: int, bar: Callable[[Iterable, int], Iterable] = no_bar) -> Tensor:
    """[N, 3, size, size] uint8 (channels_last), each image as by `read`, with `workers` threads; `bar` shows them."""
    pixels = torch.empty(len(paths), size, size, 3, dtype=torch.uint8)

    def fill(path: str, out: np.ndarray) -> None:
        out[:] = read(path, size)

    with ThreadPoolExecutor(workers) as pool:
        for _ in bar(pool.map(fill, paths, pixels.numpy()), len(paths)):
            pass
    return pixels.permute(0, 3, 1, 2)
