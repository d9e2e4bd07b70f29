"""The files under which an output grows: hidden beside their final paths until all are whole.

Those of a plain conversion vanish unless they are renamed. Those of one that may be resumed stay,
with a journal of how far they are sound.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from q4run.convert.output.journal import Fingerprint, Journal
from q4run.convert.output.layout import Part
from q4run.convert.output.leftovers import hold, temporary_path
from q4run.errors import Error
from q4run.machine.interrupts import safe_points

# How often what was written is made safe against a crash: often enough that little is lost, seldom
# enough that the disk hardly notices.
SYNC_BYTES = 256 * 10**6
SYNC_SECONDS = 5.0


class Outputs(ABC):
    """The files of a conversion's parts, on the way."""

    #: How much of all parts together is there already, in bytes.
    n_kept = 0

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def path_of(self, part: Part) -> Path:
        """Where the part grows."""

    def kept_of(self, part: Part) -> int:
        """How many bytes of the part are there already: it ends with a whole matrix."""
        return 0

    @contextmanager
    def open(self, part: Part) -> Iterator[BinaryIO]:
        """The part's file, open behind what is there already; on disk when the block ends well."""
        kept = self.kept_of(part)
        path = self.path_of(part)
        with path.open("r+b" if kept else "wb", buffering=0) as file:
            file.truncate(kept)
            file.seek(kept)
            yield file
            os.fsync(file.fileno())

    @abstractmethod
    def note(self, file: BinaryIO, written: int) -> None:
        """Is told after each write how many bytes of all parts are written."""

    def rename_all(self) -> None:
        """Puts every file in its place. Ctrl-C waits meanwhile: all parts are there, or none."""
        with safe_points():
            renamed = []
            try:
                for part in self.parts:
                    self.path_of(part).replace(part.path)
                    renamed.append(part)
            except OSError:
                for part in renamed:
                    part.path.replace(self.path_of(part))
                raise

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leaves behind what is left behind of this kind of output."""


class TemporaryFiles(Outputs):
    """Files that vanish unless they are renamed."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__(parts)
        self._held: list[int] = []

    def path_of(self, part: Part) -> Path:
        # The process id keeps two conversions to the same output apart.
        return temporary_path(part.path)

    @contextmanager
    def open(self, part: Part) -> Iterator[BinaryIO]:
        with super().open(part) as file:
            self._held.append(hold(file))
            yield file

    def note(self, file: BinaryIO, written: int) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with safe_points():
            for part in self.parts:
                self.path_of(part).unlink(missing_ok=True)
            for descriptor in self._held:
                os.close(descriptor)


class ResumableFiles(Outputs):
    """Files that stay when the conversion is interrupted, even by a crash, with a journal.

    The journal says how many bytes are sound: what was written since may be lost, and what is kept
    ends with a whole matrix. A lock on it keeps a second conversion away.
    """

    def __init__(self, parts: Sequence[Part], marks: Fingerprint) -> None:
        super().__init__(parts)
        self.restarted = False  # whether what there was could not be used
        self._marks = marks
        self._kept = dict.fromkeys((part.path for part in parts), 0)
        self._finished = False
        self._written = 0
        self._synced = 0
        self._synced_at = time.monotonic()
        self._syncing: Future[None] | None = None

    def __enter__(self) -> Self:
        """Raises ``Error`` when another conversion holds the journal, when it is of another one,
        and when it cannot be written."""
        path = self.parts[0].path
        try:
            self._journal = Journal(path.with_name(f".{path.name}.journal"))
            try:
                self._find_what_is_kept()
            except BaseException:
                self._journal.close()
                raise
        except OSError as error:
            reason = error.strerror or error
            raise Error(f"{path.parent}: cannot write: {reason}") from None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="journal")
        return self

    def path_of(self, part: Part) -> Path:
        return part.path.with_name(f".{part.path.name}.partial")

    def kept_of(self, part: Part) -> int:
        return self._kept[part.path]

    def _find_what_is_kept(self) -> None:
        entry = self._journal.read()
        if entry is not None:
            marks, written = entry
            advice = f"or delete {self._journal.path} to start anew"
            if marks.source != self._marks.source:
                raise Error(
                    f"{self._journal.path}: belongs to an interrupted conversion of other files, "
                    f"or they have changed since: name another output, {advice}"
                )
            if marks.plan != self._marks.plan:
                raise Error(
                    f"{self._journal.path}: belongs to an interrupted conversion with other "
                    f"options, or by another version of q4run: give the options of then, {advice}"
                )
            before = 0
            for part in self.parts:
                self._kept[part.path] = part.position_at(written - before).n_bytes
                before += part.n_bytes
            if not all(self._is_sound(part) for part in self.parts):
                self._kept = dict.fromkeys(self._kept, 0)
                self.restarted = True
        self.n_kept = self._written = self._synced = sum(self._kept.values())
        self._journal.write(self._marks, self.n_kept)

    def _is_sound(self, part: Part) -> bool:
        """Whether the part's file holds as much as the journal says, and begins as it must."""
        kept = self.kept_of(part)
        path = self.path_of(part)
        if not kept:
            return True
        try:
            with path.open("rb") as file:
                header = file.read(len(part.header))
                return header == part.header and os.fstat(file.fileno()).st_size >= kept
        except OSError:
            return False

    @contextmanager
    def open(self, part: Part) -> Iterator[BinaryIO]:
        with super().open(part) as file:
            try:
                yield file
            finally:
                self._wait()  # while the file is still open

    def note(self, file: BinaryIO, written: int) -> None:
        self._written = written
        now = time.monotonic()
        if written - self._synced < SYNC_BYTES and now - self._synced_at < SYNC_SECONDS:
            return
        if self._syncing is not None and not self._syncing.done():
            return
        self._wait()
        self._synced, self._synced_at = written, now
        self._syncing = self._pool.submit(self._sync, file.fileno(), written)

    def _sync(self, file: int, written: int) -> None:
        os.fsync(file)
        self._journal.write(self._marks, written)

    def _wait(self) -> None:
        """Until the file is no longer in use; raises what went wrong then."""
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()

    def rename_all(self) -> None:
        with safe_points():
            super().rename_all()
            self._finished = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with safe_points():
            self._pool.shutdown(wait=True)
            try:
                if self._finished or self._written == 0:
                    for part in self.parts:
                        self.path_of(part).unlink(missing_ok=True)
                    self._journal.remove()
                elif self._written > self.n_kept:
                    with suppress(OSError):  # else less is kept, as the journal says
                        self._keep()
            finally:
                self._journal.close()

    def _keep(self) -> None:
        """Makes safe all that was written so far."""
        before = 0
        for part in self.parts:
            if before >= self._written:
                break
            file = os.open(self.path_of(part), os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
            before += part.n_bytes
        self._journal.write(self._marks, self._written)
