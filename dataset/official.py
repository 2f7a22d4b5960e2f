"""Data sets that torchvision reads, checks by their MD5 sums, and downloads if files are missing or broken."""

import http.client
import tarfile
from pathlib import Path

from torchvision.datasets import CIFAR10, STL10


def read(
    source: type[CIFAR10] | type[STL10], folder: Path, kind: str, train: dict, val: dict
) -> tuple[CIFAR10 | STL10, CIFAR10 | STL10]:
    """Reads both splits.

    Args:
        source: torchvision's data set.
        folder: holds or is the data set's own folder; otherwise it is downloaded there.
        kind: what its files are, for the error message.
        train, val: options of `source` for each split.

    Raises:
        FileNotFoundError: the files are missing or broken, and the download failed.
    """
    files = [name for name, _ in source.train_list + source.test_list]
    inside = all((folder / name).is_file() for name in files)
    if inside:
        source = type(source.__name__, (source,), {"base_folder": ""})
    existed = folder.exists()
    try:
        return source(folder, download=not inside, **train), source(folder, **val)
    except (OSError, RuntimeError, EOFError, tarfile.TarError, http.client.HTTPException) as error:
        if not existed and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        tried = "their MD5 sums" if inside else f"to download {source.url}"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(
            f"{folder / source.base_folder}: expected the {kind} {', '.join(files)}; tried {tried}: {reason}"
        ) from error
