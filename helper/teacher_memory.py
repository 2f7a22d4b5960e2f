"""`teacher_acc.json` in the save folder: accuracies of teachers that were validated before."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import checkpoint, parallel
from .util import UserError

FILE = "teacher_acc.json"


def remembered(folder: str | Path, network: str, about: dict[str, Any], measure: Callable[[], float]) -> float:
    """The accuracy in percent that the file in `folder` has for the network, else that of `measure`, which it gets.

    about: all that the accuracy depends on, for JSON. A file that is broken or something else counts as empty and is
    overwritten; one that cannot be written is let be.
    """
    path = Path(folder) / FILE
    key = f"{network} {hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()}"
    found = parallel.all_gather(None if parallel.rank() else read(path).get(key))[0]
    if found is None:
        found = measure()
        if not parallel.rank():
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                checkpoint.save_json(path, read(path) | {key: found})
    return found


def read(path: Path) -> dict[str, float]:
    """What of the file is an accuracy."""
    with contextlib.suppress(UserError):
        found = checkpoint.load_json(path, FILE) if path.is_file() else {}
        return {key: accuracy for key, accuracy in found.items() if type(accuracy) is float and 0 <= accuracy <= 100}
    return {}
