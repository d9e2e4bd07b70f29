"""A panel that stays at the bottom of the terminal while text streams above it.

The terminal's scroll region keeps the two apart: text scrolls in the rows above the panel and
needs not a byte more than without one, whatever its width; the panel's rows are overwritten where
they stand, those that changed. What scrolls off goes to the scrollback as ever.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, TextIO

from q4run.machine.interrupts import safe_points
from q4run.terminal import Waiting, has_colours, stderr_console

if TYPE_CHECKING:
    from q4run.generation.completion import Completion
    from q4run.model import Model

# Gives the panel's lines for a terminal of so many columns, at most so many of them.
Draw = Callable[[int, int], list[str]]

_INTERVAL_S = 0.2
_SHARE = 3  # a panel takes one line of so many
_LEAST_TEXT = 3  # lines of text above it: in a lower terminal there is no panel
_PATIENCE_S = 1.0  # for a terminal that takes nothing, when the process is told to end

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
# A terminal that knows these shows what is between them at once.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
# Setting the scroll region moves the cursor: it is put back where it was.
_SAVE, _RESTORE = "\x1b7", "\x1b8"
_WHOLE_SCREEN = f"{_SAVE}\x1b[r{_RESTORE}"
_DOWN = "\x1bD"  # scrolls at the bottom, and keeps the column
_ERASE_BELOW, _ERASE_LINE = "\x1b[J", "\x1b[K"


def progress(what: str, model: Model, completion: Completion, *, stats: bool) -> Live | Waiting:
    """What a person sees until an answer is over: with ``stats`` and a terminal for it the panel,
    otherwise a line that says ``what`` is being waited for, until the text begins."""
    if not (stats and can_show_panel()):
        return Waiting(what)
    from q4run.cli.meter import Meter
    from q4run.cli.panel import panel

    meter, colour = Meter(model, completion), has_colours(stderr_console())
    return Live(
        lambda width, height: panel(meter.figures(), meter.use(), width, height, colour=colour)
    )


def can_show_panel() -> bool:
    """Whether standard error is a terminal whose cursor can be moved, and has all characters."""
    console = stderr_console()
    return (
        console.is_terminal
        and sys.stderr.isatty()
        and not console.is_dumb_terminal
        and "utf" in console.encoding.lower()
        and _size(sys.stderr) is not None
    )


class Live:
    """The panel on standard error, drawn from a thread of its own; a context manager.

    Whatever ends the context, and where SIGTERM or Ctrl-Z ends or stops the process, the panel is
    gone, the cursor is back, and text goes on where it stood. Enter it from the main thread, where
    ``can_show_panel``.
    """

    def __init__(self, draw: Draw) -> None:
        self._draw_lines = draw
        self._stream = sys.stderr
        self._lock = threading.RLock()
        self._size = (0, 0)
        self._lines: list[str] = []  # as they stand in the terminal
        self._is_open = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="panel", daemon=True)
        self._handlers: dict[int, Callable[[int, FrameType | None], None]] = {}

    def __enter__(self) -> Live:
        try:
            with safe_points():
                self._handle_signals()
                self._open()
                self._thread.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with safe_points():
            self._end()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Text is written, and flushed, inside this, so that no frame comes between its bytes."""
        with self._lock:
            if self._is_open and _size(self._stream) != self._size:
                # Or the text would be written over what is left of the panel.
                self._open()
            yield

    def _end(self) -> None:
        self._ended.set()
        with self._lock, suppress(OSError):
            self._close()
        for number in self._handlers:
            signal.signal(number, signal.SIG_DFL)
        self._handlers = {}

    def _refresh(self) -> None:
        with suppress(OSError):  # the terminal is gone
            while not self._ended.wait(_INTERVAL_S):
                with self._lock:
                    if self._is_open:
                        self._draw()

    def _draw(self) -> None:
        """Overwrites the lines that have changed."""
        if _size(self._stream) != self._size:
            self._open()
            return
        lines = self._lines_for_size()[: len(self._lines)]
        lines += [""] * (len(self._lines) - len(lines))
        changed = {
            row: line
            for row, (line, old) in enumerate(zip(lines, self._lines, strict=True))
            if line != old
        }
        self._lines = lines
        if changed:
            self._write(_BEGIN + self._at_rows(changed) + _END)

    def _open(self) -> None:
        """Makes room for the panel, as large as the terminal is now, and draws it. What is below
        the cursor, a panel of another size too, goes."""
        self._is_open = True
        self._size = _size(self._stream) or (0, 0)
        self._lines = self._lines_for_size()
        n_lines, height = len(self._lines), self._size[1]
        frame = _BEGIN + _HIDE_CURSOR + _WHOLE_SCREEN + _ERASE_BELOW
        if n_lines:
            frame += _DOWN * n_lines + f"\x1b[{n_lines}A"
            frame += f"{_SAVE}\x1b[1;{height - n_lines}r{_RESTORE}"
            frame += self._at_rows(dict(enumerate(self._lines)))
        self._write(frame + _END)

    def _close(self) -> None:
        """Leaves the terminal as if there had been none."""
        if not self._is_open:
            return
        self._is_open = False
        frame = _BEGIN + _WHOLE_SCREEN
        if _size(self._stream) == self._size:
            frame += self._at_rows(dict.fromkeys(range(len(self._lines)), ""))
        else:
            frame += _ERASE_BELOW
        self._write(frame + _SHOW_CURSOR + _END)

    def _lines_for_size(self) -> list[str]:
        columns, height = self._size
        most = height // _SHARE
        return self._draw_lines(columns, most) if height - most >= _LEAST_TEXT and most else []

    def _at_rows(self, lines: dict[int, str]) -> str:
        """Puts lines into rows of the panel, counted from 0, and the cursor back."""
        first = self._size[1] - len(self._lines) + 1
        written = [f"\x1b[{first + row};1H{line}{_ERASE_LINE}" for row, line in lines.items()]
        return "".join([_SAVE, "\x1b[m", *written, _RESTORE])

    def _write(self, text: str) -> None:
        """In one piece, past the stream's buffer: a signal may have come in the middle of it."""
        data = memoryview(text.encode())
        while data:
            data = data[os.write(self._stream.fileno(), data) :]

    def _handle_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in (
            (signal.SIGTERM, self._on_end),
            (signal.SIGTSTP, self._on_stop),
        ):
            if signal.getsignal(number) is signal.SIG_DFL:
                self._handlers[number] = handler
                signal.signal(number, handler)

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        """Ends the process as the signal would have done, with the terminal in order."""
        self._close_soon()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-Z: the shell gets an orderly terminal, and the panel is back after ``fg``."""
        was_open = self._is_open
        self._close_soon()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
        signal.signal(number, self._handlers.get(number, signal.SIG_DFL))
        if was_open:
            with self._lock:
                self._open()

    def _close_soon(self) -> None:
        if self._lock.acquire(timeout=_PATIENCE_S):
            try:
                with suppress(OSError):
                    self._close()
            finally:
                self._lock.release()


def _size(stream: TextIO) -> tuple[int, int] | None:
    """Columns and lines of a terminal; None where it does not tell."""
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return None
    return (columns, lines) if columns and lines else None
