"""Writing the output: under temporary names, renamed when every byte of every part is on disk."""

import errno
import os
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from q4run.convert.layout import Part
from q4run.convert.stream import BlockPlan, stream_tensors
from q4run.errors import Error
from q4run.interrupts import safe_points
from q4run.memory import format_size

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Progress = Callable[[int, int], None]


def check_targets(parts: Sequence[Part], *, force: bool) -> None:
    """Refuses to start when the output cannot be put where it shall go.

    Raises ``Error`` for an existing output (unless ``force``), a folder that is absent, a target
    that is no plain file, or too little disk space.
    """
    folder = parts[0].path.parent
    if not folder.is_dir():
        raise Error(f"{folder}: no such folder: make it first")
    for part in parts:
        if not part.path.exists():
            continue
        if not part.path.is_file():
            raise Error(f"{part.path}: is not a plain file: name another output")
        if not force:
            raise Error(f"{part.path}: exists already: name another output, or give --force")
    total = sum(part.n_bytes for part in parts)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise Error(
            f"{folder}: the output takes {format_size(total)}, but only {format_size(free)} "
            "are free on that disk: make room, or name an output elsewhere"
        )


def write_parts(parts: Sequence[Part], plan: BlockPlan, progress: Progress | None) -> None:
    """Writes all parts; on any error, or Ctrl-C, nothing of them remains.

    ``progress`` is called with (bytes written, bytes in all). Raises ``Error`` when the disk is
    full or cannot be written.
    """
    total = sum(part.n_bytes for part in parts)
    written = 0
    try:
        with _TemporaryFiles() as temporary:
            for part in parts:
                with temporary.create(part.path) as file, closing(_chunks(part, plan)) as chunks:
                    for chunk in chunks:
                        file.write(chunk)
                        written += len(chunk)
                        if progress is not None:
                            progress(written, total)
                    file.flush()
                    os.fsync(file.fileno())
            temporary.rename_all()
    except OSError as error:
        folder = parts[0].path.parent
        if error.errno in FULL_DISK:
            raise Error(
                f"{folder}: the disk filled up after {format_size(written)} of "
                f"{format_size(total)}; nothing was kept: make room and start again"
            ) from None
        raise Error(f"{folder}: cannot write: {error.strerror or error}") from None


def _chunks(part: Part, plan: BlockPlan) -> Generator[bytes | memoryview]:
    """All bytes of a part, in order."""
    yield part.header
    yield from stream_tensors(part.tensors, plan)


class _TemporaryFiles:
    """Files beside their final paths that vanish unless they are renamed."""

    def __init__(self) -> None:
        self._paths: list[tuple[Path, Path]] = []

    def __enter__(self) -> "_TemporaryFiles":
        return self

    def create(self, final: Path) -> BinaryIO:
        # The process id keeps two conversions to the same output apart.
        temporary = final.with_name(f".{final.name}.{os.getpid()}.partial")
        self._paths.append((temporary, final))
        return temporary.open("wb")

    def rename_all(self) -> None:
        """Puts every file in its place. Ctrl-C waits meanwhile: all parts are there, or none."""
        with safe_points():
            renamed = []
            try:
                for temporary, final in self._paths:
                    temporary.replace(final)
                    renamed.append(final)
            except OSError:
                for final in renamed:
                    final.unlink(missing_ok=True)
                raise
            self._paths.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with safe_points():
            for temporary, _ in self._paths:
                temporary.unlink(missing_ok=True)
