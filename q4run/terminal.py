"""What is printed where: quiet lines, waiting, and text of a model made safe to look at."""

import errno
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from q4run.errors import Error

_DIM, _NOT_DIM = "\x1b[2m", "\x1b[22m"
_PATIENCE_S = 0.5
_STALL_S = 2.0
# Control characters steer a terminal; line feed and tab alone are text.
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "�")
_CONTROL |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}
_HINTS = {
    errno.ENOENT: "there is no such file; check the path",
    errno.EACCES: "permission denied; check who may read or write there",
    errno.EISDIR: "this is a folder; name a file",
    errno.ENOSPC: "the disk is full; make room or write elsewhere",
    errno.ENOMEM: "there is not enough memory; lower --ram-budget or --context",
}


def stderr_console() -> Console:
    """Standard error as it is now: colours in a terminal, plain text elsewhere."""
    return Console(stderr=True, highlight=False, emoji=False)


def has_colours(console: Console) -> bool:
    """Whether what is printed there may say something by its colour."""
    return console.is_terminal and not console.no_color and console.color_system is not None


def printable(text: str) -> str:
    """``text`` without what a terminal would obey: control characters but line feed and tab."""
    return text.translate(_CONTROL)


def one_line(text: str) -> str:
    """``text`` on one line, safe for a terminal."""
    return printable(" ".join(part.strip() for part in text.splitlines()))


def note(text: str) -> None:
    """A remark on standard error."""
    _remark(printable(text), "dim")


def warn(text: str) -> None:
    """A remark on standard error about something that did not work, where things go on."""
    _remark(one_line(text), "yellow")


def describe(exception: Exception) -> str:
    """What went wrong and what to do about it, in one line."""
    match exception:
        case Error():
            return str(exception)
        case OSError():
            hint = _HINTS.get(exception.errno or 0, exception.strerror or str(exception))
            return f"{exception.filename}: {hint}" if exception.filename else hint
        case MemoryError():
            return _HINTS[errno.ENOMEM]
    return (
        f"{type(exception).__name__}: {exception}:"
        " this is a bug; run again with --debug and report it"
    )


def _remark(text: str, style: str) -> None:
    console = stderr_console()
    # Into a pipe, a line is not to be folded to the width that rich assumes there.
    console.print(text, style=style, markup=False, soft_wrap=not console.is_terminal)


def quiet_line(facts: Iterable[str], *, shorter: Iterable[str] = ()) -> None:
    """Short facts on one line of standard error.

    In a terminal too narrow for them, those of ``shorter``; if need be, broken between two facts.
    """
    console = stderr_console()
    width = console.width if console.is_terminal else sys.maxsize
    lines = _lines(facts, width)
    if len(lines) > 1:
        lines = _lines(shorter, width) or lines
    console.print("\n".join(lines), style="dim", markup=False, soft_wrap=True)


def _lines(facts: Iterable[str], width: int) -> list[str]:
    lines: list[str] = []
    for fact in map(one_line, facts):
        if lines and cell_len(longer := f"{lines[-1]} · {fact}") <= width:
            lines[-1] = longer
        else:
            lines.append(fact)
    return lines


class Waiting:
    """A progress line on standard error for what takes longer than half a second.

    Only in a terminal, and gone when it ends.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._done: int | None = None
        self._total: int | None = None
        self._progress: Progress | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(_PATIENCE_S, self._show)
        self._timer.daemon = True

    def __enter__(self) -> "Waiting":
        if stderr_console().is_terminal:
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def update(self, what: str, done: int, total: int) -> None:
        """Says what is being waited for now, and how far it is."""
        with self._lock:
            self._what, self._done, self._total = what, done, total
            if self._progress:
                task = self._progress.task_ids[0]
                self._progress.update(task, description=what, completed=done, total=total)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Text is written inside this: the line goes first."""
        self.stop()
        yield

    def stop(self) -> None:
        """Takes the line away, or never shows it; may be called twice."""
        self._timer.cancel()
        with self._lock:
            if self._progress:
                self._progress.stop()
            self._progress = None
            # A timer that has just gone off finds that it is too late.
            self._what = ""

    def _show(self) -> None:
        with self._lock:
            if not self._what:
                return
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                console=stderr_console(),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._progress.add_task(self._what, completed=self._done or 0, total=self._total)
            self._progress.start()


class Patience:
    """Says on standard error that a disk does not answer: after two seconds, four, eight."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next_s = _STALL_S

    def __call__(self, seconds: float) -> None:
        """seconds: for how long one read has been waited for."""
        if seconds < _STALL_S:
            self._next_s = _STALL_S
        elif seconds >= self._next_s:
            self._next_s *= 2
            # In a terminal an answer may stand on the line, half written.
            begin = "\n" if stderr_console().is_terminal else ""
            note(
                f"{begin}{self._name}: the disk has not answered for {seconds:.0f} s; Ctrl-C stops"
            )


class AnswerWriter:
    """Writes a model's text as it comes: as it is into a pipe, wrapped and made safe in a terminal.

    In a terminal a word appears when it is complete, so that it can go whole onto the next line;
    lines between ``` fences are left to the terminal, since a line feed would change them.
    dim: in a terminal, in fainter letters.
    """

    def __init__(self, stream: TextIO, *, dim: bool = False) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        dims = dim and self._is_terminal and has_colours(stderr_console())
        self._before, self._after = (_DIM, _NOT_DIM) if dims else ("", "")
        self._word = ""
        self._spaces = ""
        self._line = ""
        self._in_fence = False
        self._is_at_line_start = True
        self.has_written = False

    def write(self, text: str) -> None:
        """Adds a piece; what can be shown is shown at once."""
        self.has_written |= bool(text)
        if not self._is_terminal:
            self._emit(text)
        else:
            for character in printable(text):
                self._push(character)
        self._stream.flush()

    def end(self, *, new_line: bool) -> None:
        """Shows what was held back; ``new_line`` also ends a line that is not ended yet."""
        if self._is_terminal:
            self._place_word()
        if new_line and not self._is_at_line_start:
            self._emit("\n")
        self._stream.flush()

    def _push(self, character: str) -> None:
        if character == "\n":
            self._place_word()
            if self._line.lstrip().startswith("```"):
                self._in_fence = not self._in_fence
            self._line = self._spaces = ""
            self._emit("\n")
        elif character.isspace():
            self._place_word()
            self._spaces += character
        else:
            self._word += character
            # Scripts without spaces, and words longer than a line, break anywhere.
            if cell_len(character) > 1 or cell_len(self._word) >= self._width:
                self._place_word()

    def _place_word(self) -> None:
        if not self._word:
            return
        fits = cell_len(self._line + self._spaces + self._word) <= self._width
        if not fits and self._line and not self._in_fence:
            self._emit("\n")
            self._line = self._spaces = ""
        self._emit(self._spaces + self._word)
        self._line += self._spaces + self._word
        self._word = self._spaces = ""

    def _emit(self, text: str) -> None:
        if text:
            self._stream.write(f"{self._before}{text}{self._after}")
            self._is_at_line_start = text.endswith("\n")

    @property
    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80
