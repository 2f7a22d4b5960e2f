"""TinyImageNet-200: 100,000 training and 10,000 validation images of 64x64 pixels, 200 classes of ImageNet.

Y. Le and X. Yang, "Tiny ImageNet Visual Recognition Challenge", 2015, https://cs231n.stanford.edu/tiny-imagenet-200.zip
(`bash scripts/get_tinyimagenet.sh` downloads it). Validates on the published validation images, because the test images
have no public labels. Images live in memory or in files as for `folder`.
"""

import os
from pathlib import Path

from .base import ImageSet, register
from .files import Found, by_class, few, images_below, lines_of, same_classes
from .listing import Listing
from .storage import Storage

_name = "tiny-imagenet-200"


@register("tinyimagenet")
def tinyimagenet(folder: str | Path, image_size: int | None, storage: Storage) -> ImageSet:
    """`folder` holds or is `tiny-imagenet-200`. Images have `image_size` or 64 pixels. Raises as `listing`."""
    mean, std = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
    return listing(folder).at(image_size or 64, storage, mean, std)


def listing(folder: str | Path) -> Listing:
    """Lists the image files of wnids.txt, train/<wnid>/images/*, and val/images/* with its annotations.

    A regrouped val/<wnid>/* works too.

    Raises:
        FileNotFoundError: no such layout, a class without images, or no annotations.
        ValueError: classes or images that differ from wnids.txt or the annotations.
    """
    folder = Path(folder)
    root = folder / _name if (folder / _name).is_dir() else folder
    wnids, train, val = root / "wnids.txt", root / "train", root / "val"
    if not (wnids.is_file() and train.is_dir() and val.is_dir()):
        there = few(sorted(os.listdir(root))) if root.is_dir() else "no folder"
        raise FileNotFoundError(
            f"{root}: expected wnids.txt, train/ and val/, here or in {_name}/; found {there} "
            "(bash scripts/get_tinyimagenet.sh fetches them)"
        )
    names = " ".join(lines_of(wnids)).split()
    classes = tuple(sorted(set(names)))
    if len(classes) < max(2, len(names)):
        raise ValueError(f"{wnids}: expected at least 2 different classes, one a line; found {few(names)}")

    in_train, train_files, train_labels = by_class(train)
    same_classes(train, in_train, classes, wnids.name)
    if (val / "images").is_dir() and any(images_below(val / "images")):
        val_files, val_labels = _annotated(val, classes)
    else:
        in_val, val_files, val_labels = by_class(val, ignored="images")
        same_classes(val, in_val, classes, wnids.name)
    return Listing(root, classes, train_files, train_labels, val_files, val_labels)


def _annotated(val: Path, classes: tuple[str, ...]) -> tuple[list[Found], list[int]]:
    """Images of val/images and their labels, in the order of the annotations' lines, `<image> <wnid> <box>`."""
    table = val / "val_annotations.txt"
    if not table.is_file():
        raise FileNotFoundError(f"{table}: no such file; it names the class of every image in {val / 'images'}")
    unnamed = {image.name: image for image in images_below(val / "images")}
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    files, labels = [], []
    for number, line in enumerate(lines_of(table), start=1):
        name, wnid = (line.split() + ["", ""])[:2]
        if name not in unnamed:
            raise ValueError(f"{table}: line {number} names {name or 'no image'}, not one of images/ or named before")
        if wnid not in label_of:
            raise ValueError(f"{table}: line {number} gives {name} the class {wnid or 'none'}, not one of wnids.txt")
        files.append(unnamed.pop(name))
        labels.append(label_of[wnid])
    if unnamed:
        raise ValueError(f"{table}: no line for {few(sorted(unnamed))} of images/")
    return files, labels
