"""What was measured on this machine and counts for a day, in JSON beside the compiled kernels."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from q4run.kernels.compiling.compile import CACHE_FOLDER

FOLDER = CACHE_FOLDER.parents[1]
_REMEMBERED_S = 24 * 3600


def read_notes(path: Path) -> dict[str, Any]:
    """What is noted, by name; nothing where the file is absent, unreadable or no notes."""
    try:
        notes = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def add_notes(path: Path, notes: Mapping[str, Any]) -> None:
    """Adds to what is noted; where that is impossible, the next start measures again."""
    part = path.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(read_notes(path) | dict(notes)))
        part.replace(path)


def now() -> int:
    """When something is noted, for ``counts_still``."""
    return int(time.time())


def counts_still(when: Any) -> bool:
    """Whether what was noted ``when`` still counts. Raises TypeError or ValueError for no time."""
    return 0 <= time.time() - float(when) < _REMEMBERED_S
