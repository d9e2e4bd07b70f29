"""Ctrl-C at safe points only: never between two halves of a change."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
