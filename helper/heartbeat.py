"""Signs of life between the processes of a run, so that they do not wait for hours for one that was stopped or cut off.

How long a process may compute is not asked: its sign comes from a thread, while it decodes images or compiles.
"""

import atexit
import contextlib
import os
import sys
import threading
from pathlib import Path

from torch.distributed import TCPStore

SILENT = 20  # seconds until a process counts as gone; torchrun then takes 30 more to end one that does not answer


def start(rank: int, world: int) -> None:
    """From here on this process ends, with exit status 1 and a line, when another one has been silent for `SILENT` s.

    Each counts its own signs in the store that has joined the processes, and looks at the counts of the others.
    """
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))  # calls of one client wait in line
    others = [other for other in range(world) if other != rank]
    counts, silent, over = dict.fromkeys(others), dict.fromkeys(others, 0), threading.Event()

    def beat() -> None:
        while not over.wait(1):
            with contextlib.suppress(RuntimeError):  # the store has gone, and with it all signs
                store.add(f"signs of {rank}", 1)
                for other in others:
                    count = store.add(f"signs of {other}", 0)
                    if count != counts[other]:
                        counts[other], silent[other] = count, 0

    def watch() -> None:
        """Counts seconds in which this process ran: one that was stopped itself hears the others before it judges."""
        while not over.wait(1):
            for other in others:
                silent[other] += 1
            if gone := [str(other) for other in others if silent[other] > SILENT]:
                with contextlib.suppress(OSError):
                    said = f"no sign of life of process {', '.join(gone)} for {SILENT} s: stopped, ended or cut off"
                    end = "the same command goes on from the last checkpoint"
                    print(f"{Path(sys.argv[0]).name}: error: {said}; {end}", file=sys.stderr, flush=True)
                os._exit(1)

    threads = [threading.Thread(target=target, daemon=True) for target in (beat, watch)]

    def stop() -> None:
        over.set()
        for thread in threads:
            thread.join(2)

    for thread in threads:
        thread.start()
    atexit.register(stop)
