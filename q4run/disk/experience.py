"""What a run's reads reach, and what that says of the disk's speed as it was measured."""

from collections.abc import Sequence
from pathlib import Path

from q4run.disk.auto import Choice
from q4run.disk.speed import correct_speed
from q4run.machine.load import Watch

# Less tells of a disk's own cache, or of one bad moment.
_FEWEST_BYTES = 256 << 20
_LEAST_S = 1.0


class Experience:
    """Of one run, from its birth on: whoever reads tells at the end what it read."""

    def __init__(self, paths: Sequence[Path], choice: Choice) -> None:
        """paths: the model's files; choice: how they are read."""
        self._path = paths[0]
        self._choice = choice
        self._watch = Watch(self._path)

    def tell(self, n_bytes: int, seconds: float) -> None:
        """Corrects what is noted of the disk where this is far from it.

        n_bytes: what was read; seconds: as long as at least one read was under way. Only reads that
        pass the page cache by tell of the disk.
        """
        if n_bytes < _FEWEST_BYTES or seconds < _LEAST_S:
            return
        choice = (self._choice.method, self._choice.n_readers)
        correct_speed(self._path, choice, n_bytes / seconds, self._watch.load())
