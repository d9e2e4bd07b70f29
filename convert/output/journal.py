"""How far an interrupted conversion came: a small file beside its output, locked while one runs."""

import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from q4run import __version__
from q4run.convert.output.layout import Part
from q4run.errors import Error
from q4run.kernels.compiling.compile import CACHE_FOLDER

VERSION = 1
JOURNAL_BYTES = 1024


@dataclass(frozen=True)
class Fingerprint:
    """What an output's bytes follow from: its source's files, and what shall be made of them."""

    source: str
    plan: str


def fingerprint(parts: Sequence[Part], files: Sequence[Path]) -> Fingerprint:
    """Of the names, sizes and times of the source's ``files``; of all headers (metadata, names,
    types and places of tensors), the arrays that quantising goes by, and its version."""
    source = hashlib.sha256()
    for path in files:
        status = path.stat()
        entry = [str(path.resolve()), status.st_size, status.st_mtime_ns]
        source.update(json.dumps(entry).encode())
    plan = hashlib.sha256(json.dumps([__version__, CACHE_FOLDER.name]).encode())
    for part in parts:
        plan.update(json.dumps([part.path.name, len(part.header), part.n_bytes]).encode())
        plan.update(part.header)
        for planned in part.tensors:
            for field in fields(planned):
                value = getattr(planned, field.name)
                if isinstance(value, np.ndarray):
                    plan.update(np.ascontiguousarray(value).data)
    return Fingerprint(source.hexdigest(), plan.hexdigest())


class Journal:
    """The journal of one output, which this process alone holds until it is closed or ends."""

    def __init__(self, path: Path) -> None:
        """Opens it, or makes a new one. Raises ``Error`` when another process holds it, and
        ``OSError``."""
        self.path = path
        self._file = _lock(path)

    def read(self) -> tuple[Fingerprint, int] | None:
        """Of what conversion it is, and how many of its bytes are sound; None of a new journal, or
        one that makes no sense."""
        try:
            entry = json.loads(os.pread(self._file, JOURNAL_BYTES, 0))
        except (ValueError, RecursionError):
            return None
        if not isinstance(entry, dict) or entry.get("version") != VERSION:
            return None
        source, plan, n_bytes = (entry.get(key) for key in ("source", "plan", "n_bytes"))
        if not isinstance(source, str) or not isinstance(plan, str) or type(n_bytes) is not int:
            return None
        return Fingerprint(source, plan), max(0, n_bytes)

    def write(self, marks: Fingerprint, n_bytes: int) -> None:
        """On disk when it returns."""
        entry = {"version": VERSION, "source": marks.source, "plan": marks.plan}
        text = json.dumps(entry | {"n_bytes": n_bytes}).encode().ljust(JOURNAL_BYTES)
        # In place, in one write: a new file under the same name would leave the lock behind.
        os.pwrite(self._file, text, 0)
        os.fsync(self._file)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._file)


def _lock(path: Path) -> int:
    """The file, open and locked: the lock goes with the descriptor, or with the process."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had the lock until now may have removed the file.
            if _is_at(file, path):
                return file
        except BlockingIOError:
            os.close(file)
            raise Error(
                f"{path}: another conversion to this output is running: wait for it, or name "
                "another output"
            ) from None
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
