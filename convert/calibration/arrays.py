"""Large float32 arrays within a budget: in RAM while they fit, else in temporary files."""

import math
import os
import tempfile
from pathlib import Path

import numpy as np

from q4run.errors import Error
from q4run.sizes import format_size


class Arrays:
    """Makes arrays that together keep to ``budget`` bytes of RAM; what is beyond lies in files.

    These are in ``folder`` and have no names: however the process ends, nothing is left behind.
    """

    def __init__(self, budget: int, folder: Path) -> None:
        self._left = budget
        self._folder = folder

    def empty(self, *shape: int) -> np.ndarray:
        """float32 of that shape, not filled. Raises ``Error`` where the disk has no room."""
        n_bytes = 4 * math.prod(shape)
        if n_bytes <= self._left:
            self._left -= n_bytes
            return np.empty(shape, np.float32)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                _reserve(file.fileno(), n_bytes)
                return np.memmap(file, np.float32, "r+", shape=shape)
        except OSError as error:
            raise Error(
                f"{self._folder}: {format_size(n_bytes)} of intermediate results do not fit there"
                f" ({error.strerror}): allow more memory, or take less text"
            ) from None


def _reserve(file: int, n_bytes: int) -> None:
    """Makes the file that long; on disk, so that a full disk shows now and not while it is used."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, n_bytes)
    else:
        os.ftruncate(file, n_bytes)
