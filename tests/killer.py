"""python tests/killer.py SIGNAL PLACE WHEN SCRIPT ...: the script; at the WHEN-th call of PLACE it gets SIGNAL.

PLACE: module.function or module:class.method. With RANK in the environment only process KILLED_RANK does so.
"""

import importlib
import os
import runpy
import signal
import sys
from typing import Any


def patch(number: int, place: str, when: int) -> None:
    path, _, name = place.rpartition(".")
    module, _, cls = path.partition(":")
    owner = importlib.import_module(module)
    owner = getattr(owner, cls) if cls else owner
    original, calls = getattr(owner, name), 0

    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == when:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


if __name__ == "__main__":
    _, name, place, when, *sys.argv = sys.argv
    sys.path.insert(0, os.getcwd())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # of a job in the background it is ignored
    if os.environ.get("RANK") == os.environ.get("KILLED_RANK"):
        patch(signal.Signals[name], place, int(when))
    runpy.run_path(sys.argv[0], run_name="__main__")
