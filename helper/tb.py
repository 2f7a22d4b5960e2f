"""TensorBoard scalars by tensorboard_logger, or nothing where that package does not work."""

import contextlib
import os
import warnings
from pathlib import Path

# The package's generated protobuf code is older than protobuf's compiled runtime accepts; the Python runtime reads it.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

_warned = False


class Scalars:
    """Writes scalars into a folder that TensorBoard reads. Goes on without, with one warning, where it cannot.

    folder None: nothing is written.
    """

    def __init__(self, folder: Path | None) -> None:
        global _warned
        self._logger = None
        if folder is None:
            return
        try:
            from tensorboard_logger import Logger

            class Quiet(Logger):
                def __del__(self) -> None:
                    with contextlib.suppress(OSError):  # what is left of the events of a full disk
                        super().__del__()

            self._logger = Quiet(str(folder), flush_secs=10)
        except Exception as error:  # an old package fails in many ways: import, protobuf, numpy
            if not _warned:
                warnings.warn(f"no TensorBoard events, log.csv alone: tensorboard_logger says {error!r}", stacklevel=2)
                _warned = True

    def log(self, values: dict[str, float], step: int) -> None:
        if self._logger is not None:
            try:
                for name, value in values.items():
                    self._logger.log_value(name, value, step)
            except OSError as error:
                warnings.warn(f"no more TensorBoard events, log.csv alone: {error}", stacklevel=2)
                self._logger = None
