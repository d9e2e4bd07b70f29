"""Ctrl-C at safe points: held back in between, never lost, and only where it is ours to hold."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from q4run.machine.interrupts import safe_points


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press() -> None:
    """Ctrl-C, as the terminal sends it."""
    os.kill(os.getpid(), signal.SIGINT)


def is_default() -> bool:
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def run(steps: list[Callable[[], object] | None]) -> None:
    """All steps within one block; ``None`` stands for a safe point."""
    with safe_points() as check:
        for step in steps:
            (step or check)()


def test_without_ctrl_c_nothing_happens():
    done = []
    run([None, lambda: done.append(1), None, lambda: done.append(2)])
    assert done == [1, 2]
    assert is_default()


def test_ctrl_c_waits_for_the_next_safe_point():
    done = []
    steps = [None, press, lambda: done.append("rest of the step"), None, lambda: done.append("no")]
    with pytest.raises(KeyboardInterrupt):
        run(steps)
    assert done == ["rest of the step"]
    assert is_default()


def test_ctrl_c_waits_for_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt):
        run([None, press, lambda: done.append("last step")])
    assert done == ["last step"]
    assert is_default()


def test_pressing_many_times_is_pressing_once():
    done = []
    with pytest.raises(KeyboardInterrupt):
        run([press, press, press, lambda: done.append(1), None])
    assert done == [1]
    run([None])  # nothing is left over for the next block


def test_outside_the_block_ctrl_c_acts_at_once():
    with pytest.raises(KeyboardInterrupt):
        press()
    run([None])
    with pytest.raises(KeyboardInterrupt):
        press()


def test_an_error_in_the_block_is_raised_and_the_handler_restored():
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run([fail])
    assert is_default()
    with pytest.raises(ZeroDivisionError):
        run([press, fail])
    assert is_default()
    run([None])


def test_every_safe_point_raises_until_the_block_is_left():
    raised = []

    def swallow() -> None:
        with safe_points() as check:
            press()
            for _ in range(2):
                try:
                    check()
                except KeyboardInterrupt:
                    raised.append(1)

    with pytest.raises(KeyboardInterrupt):
        swallow()
    assert len(raised) == 2


def test_a_block_inside_a_block_leaves_it_to_the_outer_one():
    done = []

    def inner() -> None:
        with safe_points() as check:
            press()
            check()
            done.append("inner")

    with pytest.raises(KeyboardInterrupt):
        run([inner, lambda: done.append("outer"), None, lambda: done.append("no")])
    assert done == ["inner", "outer"]
    assert is_default()


def test_a_handler_of_the_program_stays_and_is_called():
    heard = []

    def own(number: int, frame: object) -> None:
        heard.append(number)

    signal.signal(signal.SIGINT, own)
    run([press, None])
    assert heard == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is own


def test_a_handler_that_raises_still_raises_at_once():
    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGINT, stop)
    done = []
    with pytest.raises(TimeoutError):
        run([press, lambda: done.append("no")])
    assert done == []
    assert signal.getsignal(signal.SIGINT) is stop


def test_ignored_signals_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run([press, None])
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_another_thread_nothing_changes():
    seen = []

    def work() -> None:
        run([lambda: seen.append(is_default()), None])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
    assert is_default()


def test_blocks_in_two_threads_do_not_disturb_each_other():
    """The main thread's block ends while the other's is still open, and keeps its Ctrl-C."""
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        run([entered.set, lambda: leave.wait(60), None])

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait(60)
    with pytest.raises(KeyboardInterrupt):
        run([press, None])
    leave.set()
    thread.join()
    assert is_default()
