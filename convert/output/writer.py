"""Writing the output: under hidden names, renamed when every byte of every part is on disk."""

import errno
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from q4run.convert.output.layout import Part
from q4run.convert.output.outputs import Outputs, ResumableFiles
from q4run.convert.output.stream import BlockPlan, stream_tensors
from q4run.errors import Error
from q4run.sizes import format_size

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
Progress = Callable[[int, int], None]


def check_targets(parts: Sequence[Part], *, force: bool, n_kept: int = 0) -> None:
    """Refuses to start when the output cannot be put where it shall go.

    ``n_kept``: how many bytes of it are on that disk already. Raises ``Error`` for an existing
    output (unless ``force``), a folder that is absent, a target that is no plain file, or too
    little disk space.
    """
    check_folder(parts)
    for part in parts:
        if not part.path.exists():
            continue
        if not part.path.is_file():
            raise Error(f"{part.path}: is not a plain file: name another output")
        if not force:
            raise Error(f"{part.path}: exists already: name another output, or give --force")
    folder = parts[0].path.parent
    total = sum(part.n_bytes for part in parts) - n_kept
    free = shutil.disk_usage(folder).free
    if total > free:
        rest = "the rest of the output" if n_kept else "the output"
        raise Error(
            f"{folder}: {rest} takes {format_size(total)}, but only {format_size(free)} "
            "are free on that disk: make room, or name an output elsewhere"
        )


def check_folder(parts: Sequence[Part]) -> None:
    """Raises ``Error`` when the folder that the output shall go to is absent."""
    folder = parts[0].path.parent
    if not folder.is_dir():
        raise Error(f"{folder}: no such folder: make it first")


def check_not_source(parts: Sequence[Part], files: Sequence[Path]) -> None:
    """Raises ``Error`` when the output would replace a file that is read."""
    read = {path.resolve() for path in files}
    for part in parts:
        if part.path.resolve() in read:
            raise Error(f"{part.path}: is the source itself: name another output")


def write_parts(outputs: Outputs, plan: BlockPlan, progress: Progress | None) -> None:
    """Writes what is missing of all parts, and puts them in their places.

    ``progress`` is called with (bytes written, bytes in all). Raises ``Error`` when the disk is
    full or cannot be written.
    """
    parts = outputs.parts
    total = sum(part.n_bytes for part in parts)
    written = outputs.n_kept
    try:
        for part in parts:
            if outputs.kept_of(part) == part.n_bytes:
                continue
            with (
                outputs.open(part) as file,
                closing(_chunks(part, plan, outputs.kept_of(part))) as chunks,
            ):
                for chunk in chunks:
                    _write(file, chunk)
                    written += len(chunk)
                    outputs.note(file, written)
                    if progress is not None:
                        progress(written, total)
        outputs.rename_all()
    except OSError as error:
        folder = parts[0].path.parent
        if error.errno in FULL_DISK:
            raise Error(
                f"{folder}: the disk filled up after {format_size(written)} of "
                f"{format_size(total)}; {_what_now(outputs)}"
            ) from None
        raise Error(f"{folder}: cannot write: {error.strerror or error}") from None


def _what_now(outputs: Outputs) -> str:
    if isinstance(outputs, ResumableFiles):
        return "what is finished was kept: make room, and the same command goes on from there"
    return "nothing was kept: make room and start again (--resume would keep what is finished)"


def _write(file: BinaryIO, chunk: bytes | memoryview) -> None:
    """All of the chunk: a write without buffers may take less."""
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]


def _chunks(part: Part, plan: BlockPlan, n_kept: int) -> Generator[bytes | memoryview]:
    """All bytes of a part, in order, behind the first ``n_kept``."""
    start = part.position_at(n_kept)
    if start.n_bytes == 0:
        yield part.header
    yield from stream_tensors(part.tensors[start.n_tensors :], plan, start.n_matrices)
