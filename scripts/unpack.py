"""Unpacks a tar (plain or gzip) or zip archive into a folder, or refuses it whole.

python scripts/unpack.py ARCHIVE FOLDER

Refused are names that lead out of the folder or come twice, links, devices, and more than --limit_gb of content.
"""

import argparse
import gzip
import stat
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helper.pipe import quiet_end  # noqa: E402

# RuntimeError: an encrypted zip, or one packed in a way that Python does not know
TOLD = (ValueError, OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class Entry(NamedTuple):
    name: str
    size: int
    is_file: bool
    is_folder: bool


def of_tar(file: tarfile.TarFile) -> Iterator[Entry]:
    for entry in file:
        yield Entry(entry.name, entry.size, entry.isreg() and not entry.issparse(), entry.isdir())


def of_zip(file: zipfile.ZipFile) -> Iterator[Entry]:
    for entry in file.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 where it was not made on Unix
        yield Entry(entry.filename, entry.file_size, kind in (0, stat.S_IFREG) and not entry.is_dir(), entry.is_dir())


def check(entries: Iterator[Entry], limit: float) -> None:
    """Reads one entry after the other, and no further than to what is refused."""
    files, total = set(), 0
    for name, size, is_file, is_folder in entries:
        path, total = PurePosixPath(name.replace("\\", "/")), total + size
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"refused, {name} leads out of the folder")
        if not (is_file or is_folder):
            raise ValueError(f"refused, {name} is neither file nor folder")
        if path in files:
            raise ValueError(f"refused, {name} comes twice")
        check_size(total if size >= 0 else limit + 1, limit)
        if is_file:
            files.add(path)


def check_size(total: float, limit: float) -> None:
    if total > limit:
        raise ValueError(f"refused, it holds more than {limit / 1e9:g} GB; --limit_gb allows for more")


def inflate(packed: IO[bytes], plain: IO[bytes], limit: float) -> None:
    with gzip.open(packed) as file:
        while part := file.read(2**20):
            plain.write(part)
            check_size(plain.tell(), limit)
    plain.seek(0)


def unpack(archive: Path, folder: Path, limit: float) -> None:
    """Every name is checked before the first file is written. Raises for what is refused, cut short or no archive."""
    with open(archive, "rb") as file, tempfile.TemporaryFile(dir=folder) as plain:
        if file.peek(2)[:2] == b"\x1f\x8b":
            inflate(file, plain, limit)
        else:
            plain = file
        try:  # first, as a tar that ends with a checkpoint, itself a zip, passes for a zip
            tar = tarfile.open(fileobj=plain, mode="r:")  # "r:": headers of a packed one could be of any size
        except tarfile.ReadError:
            with zipfile.ZipFile(plain) as content:
                check(of_zip(content), limit)
                content.extractall(folder)  # compares each file's CRC
        else:
            with tar as content:
                check(of_tar(content), limit)
                content.extractall(folder, filter="data")


@quiet_end
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage=argparse.SUPPRESS)
    parser.add_argument("archive", type=Path, help="file to unpack")
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--limit_gb", type=float, default=8.0, help="most that may come out; default: 8")
    args = parser.parse_args(argv)
    try:
        unpack(args.archive, args.folder, args.limit_gb * 1e9)
    except TOLD as error:
        print(f"{args.archive}: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
