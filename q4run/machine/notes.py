"""What was measured on this machine and counts for a day, in JSON beside the compiled kernels."""

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from q4run.kernels.compiling.compile import CACHE_FOLDER
from q4run.machine.load import Load, Watch

FOLDER = CACHE_FOLDER.parents[1]
Figures = dict[str, float]
_FRESH_S = 24 * 3600
# While a new measurement would be spoilt by other programs.
_BETTER_THAN_NONE_S = 30 * _FRESH_S
_LOOK_S = 0.2  # at what other programs do


class Notes:
    """Figures by name, in a file. ``load`` is the highest beside what was measured here.

    What was measured beside other programs counts only as long as they go on, and less than what
    was measured without them in the last month.
    """

    def __init__(self, path: Path, disk: Path | None = None, *, anew: bool = False) -> None:
        """disk: a file on the disk that is measured, None: none is; anew: whatever is noted."""
        self._path = path
        self._disk = disk
        self._anew = anew
        self.load = Load()

    def figures(self, name: str, measure: Callable[[], Figures]) -> tuple[Figures, bool]:
        """Returns what is noted, or what ``measure`` gives; and whether it did so just now.

        The names of figures that are seconds end in ``_s``; all others are speeds. Figures with a
        speed of 0 are not noted.
        """
        entry = self._read().get(name)
        known, beside_others = _usable(entry, _FRESH_S), _was_beside_others(entry)
        if known and not self._anew and (not beside_others or self._load_now.is_high):
            self.load |= self._load_now if beside_others else Load()
            return known, False
        watch = Watch(self._disk)
        figures = measure()
        load = watch.load()
        quiet = None if beside_others else _usable(entry, _BETTER_THAN_NONE_S)
        if load.is_high and quiet and not self._anew:
            return quiet, False
        self.load |= load
        if not (load.is_high and quiet):
            self.note(name, figures, beside_others=load.is_high)
        return figures, True

    def known(self, name: str) -> Figures | None:
        """Returns what is noted and still counts, however it was measured."""
        return _usable(self._read().get(name), _FRESH_S)

    def note(self, name: str, figures: Figures, *, beside_others: bool = False) -> None:
        """Notes figures; where that is impossible, the next start measures again."""
        entry = {"when": int(time.time()), "figures": figures, "beside_others": beside_others}
        self._keep(name, entry)

    def _keep(self, name: str, entry: dict[str, Any]) -> None:
        if not _usable(entry, _FRESH_S):
            return
        part = self._path.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self._read() | {name: entry}))
            part.replace(self._path)

    def correct(self, name: str, figures: Figures) -> None:
        """Replaces some of the figures of a note, which is as old as before."""
        if known := self.known(name):
            self._keep(name, self._read()[name] | {"figures": known | figures})

    @cached_property
    def _load_now(self) -> Load:
        watch = Watch(self._disk)
        time.sleep(_LOOK_S)
        return watch.load()

    def _read(self) -> dict[str, Any]:
        """Everything; nothing where the file is absent, unreadable or no notes."""
        try:
            notes = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return notes if isinstance(notes, dict) else {}


def _usable(entry: Any, seconds: float) -> Figures | None:
    """The figures of a note that is no older; None where it is, or is damaged."""
    try:
        if not 0 <= time.time() - float(entry["when"]) < seconds:
            return None
        figures = {str(key): float(value) for key, value in entry["figures"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    speeds = [value for key, value in figures.items() if not key.endswith("_s")]
    sound = speeds and min(speeds) > 0 and all(map(math.isfinite, figures.values()))
    return figures if sound else None


def _was_beside_others(entry: Any) -> bool:
    return isinstance(entry, dict) and bool(entry.get("beside_others"))
