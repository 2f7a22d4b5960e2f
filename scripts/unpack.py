"""Unpacks a tar or zip archive into a folder, or refuses it whole: names that lead out of the folder, links, devices.

python scripts/unpack.py ARCHIVE FOLDER
"""

import argparse
import stat
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath


def check(name: str, plain: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"refused, {name} leads out of the folder")
    if not plain:
        raise ValueError(f"refused, {name} is neither file nor folder")


def unpack(archive: Path, folder: Path) -> None:
    """Every name is checked before the first file is written. Raises for what is refused, cut short or no archive."""
    if tarfile.is_tarfile(archive):  # asked first: a tar that ends with a checkpoint, itself a zip, passes for a zip
        with tarfile.open(archive) as file:
            for member in file.getmembers():
                check(member.name, member.isfile() or member.isdir())
            file.extractall(folder, filter="data")
    else:
        with zipfile.ZipFile(archive) as file:
            for entry in file.infolist():
                check(entry.filename, not stat.S_ISLNK(entry.external_attr >> 16))
            file.extractall(folder)  # compares each file's CRC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    try:
        unpack(args.archive, args.folder)
    # RuntimeError: an encrypted zip, or one packed in a way that Python does not know
    except (ValueError, OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        sys.exit(f"{args.archive}: {error}")


if __name__ == "__main__":
    main()
