"""Identifies a run's images by their content, and says how others differ."""

from typing import Any

import dataset
from dataset.files import few

WORDS = {
    "train samples": "number of training images",
    "val samples": "number of validation images",
    "train images": "training images",
    "val images": "validation images",
    "train files": "files of training images",
    "val files": "files of validation images",
    "train labels": "labels of training images",
    "val labels": "labels of validation images",
}


def of(data: dataset.ImageSet) -> dict[str, Any]:
    """Class names, numbers of images, and the digests of `dataset.fingerprint`. Raises OSError if a file is gone."""
    samples = {"train samples": len(data.train_labels), "val samples": len(data.val_labels)}
    return dataset.fingerprint(data) | samples | {"classes": list(data.classes)}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, among the entries that both have."""
    found = []
    if before.get("classes", now["classes"]) != now["classes"]:
        gone = [name for name in before["classes"] if name not in now["classes"]]
        new = [name for name in now["classes"] if name not in before["classes"]]
        found.append(f"class names (gone: {few(gone)}; new: {few(new)})" if gone or new else "order of the classes")
    for key, words in WORDS.items():
        if key in before and key in now and before[key] != now[key]:
            found.append(f"{words} was {before[key]}, is {now[key]}" if "samples" in key else words)
    return found
