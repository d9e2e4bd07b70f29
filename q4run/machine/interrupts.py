"""Signals that end a process: Ctrl-C at safe points only, never between two halves of a change."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def quit_on_ctrl_c() -> None:
    """Has Ctrl-C end the process at once, without a word, while there is nothing to put in order:
    as it starts and as it ends. A handler that somebody else has set stays."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


@contextmanager
def raising_ctrl_c() -> Iterator[None]:
    """Has Ctrl-C raise KeyboardInterrupt inside the block, after ``quit_on_ctrl_c``."""
    if signal.getsignal(signal.SIGINT) is not _quit:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        quit_on_ctrl_c()


def _quit(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Has a hang-up or a polite kill raise SystemExit inside the block, as Ctrl-C raises: what
    was started ends, and what is half made goes."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    is_main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGTERM, signal.SIGHUP) if is_main else ()
    ours = [number for number in signals if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def safe_points() -> Iterator[Callable[[], None]]:
    """Holds Ctrl-C back inside the block, except where the yielded function is called.

    That function raises KeyboardInterrupt if Ctrl-C was pressed since the block began; so does the
    end of the block. In threads other than the main one, where Python delivers no signals, and
    where a program has a handler of its own, nothing changes.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield lambda: None
        return

    pressed = False

    def note(signal_number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    check()
