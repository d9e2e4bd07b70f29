"""The thread pool: every task once, whoever calls, asleep when idle, gone when closed."""

import os
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from q4run.kernels.compiling.compile import kernel
from q4run.kernels.threads import atomics
from q4run.kernels.threads import pool as pool_module
from q4run.kernels.threads.pool import ALONE, Pool, ThreadPool
from q4run.kernels.threads.tasks import run_tasks


@kernel()
def _count(task, counts, work):
    number = task
    for _ in range(work):
        number = number * 6364136223846793005 + 1442695040888963407  # what no compiler shortens
    counts[task] += 1 if number != 12345 else 0


@kernel()
def _regions(pool, counts, work, repeats):
    """``repeats`` regions one after the other: the next must not begin before all is done."""
    wrong = 0
    for repeat in range(repeats):
        run_tasks(pool, len(counts), _count, (counts, work))
        for count in counts:
            wrong += count != repeat + 1
    return wrong


@kernel()
def _count_row(task, pool, counts, work):
    run_tasks(pool, counts.shape[1], _count, (counts[task], work))


@kernel()
def _nested(pool, counts, work, repeats):
    for _ in range(repeats):
        run_tasks(pool, len(counts), _count_row, (pool, counts, work))


@kernel()
def _sum_all(task, first, second, factor, flags, out):
    out[task] += first[task] * factor + second[task] + (1 if flags[task] else 0)


@kernel()
def _many_arguments(pool, first, second, factor, flags, out):
    run_tasks(pool, len(out), _sum_all, (first, second, factor, flags, out))


@kernel()
def _meet(task, words, n_tasks, met):
    """Waits, but not for ever, until every task has come as far."""
    atomics.add(words, 0, 1)
    for _ in range(1 << 30):
        if atomics.load(words, 0) == n_tasks:
            met[task] = True
            return
        atomics.spin_hint()


@kernel()
def _all_meet(pool, words, met):
    run_tasks(pool, len(met), _meet, (words, len(met), met))


def count_wrong(pool: Pool, n_tasks: int, work: int = 0, repeats: int = 1) -> int:
    return _regions(pool, np.zeros(n_tasks, np.int64), work, repeats)


def wait_until(condition: Callable[[], bool]) -> None:
    """Lets time pass, up to what would be a failure on the slowest machine."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def n_sleeping(threads: ThreadPool) -> int:
    return int(threads.state[pool_module._SLEEPING])


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
def test_every_task_runs_exactly_once(n_threads):
    """More threads than this machine has cores included, and more than there are tasks."""
    with ThreadPool(n_threads) as threads:
        for n_tasks in (0, 1, 2, 3, 7, 64, 1000):
            assert count_wrong(threads.state, n_tasks, repeats=300) == 0
        for n_tasks in (2, 5):
            # Long enough for the other threads to be there before the caller has done all.
            assert count_wrong(threads.state, n_tasks, work=200_000, repeats=40) == 0


def test_what_wakes_many_threads_lies_within_the_state():
    """A byte for each sleeping thread: this many do not fit into the words that a few need."""
    n_threads = 200
    with ThreadPool(n_threads) as threads:
        assert threads.state[pool_module._WAKE_BYTES :].nbytes >= n_threads
        wait_until(lambda: n_sleeping(threads) == n_threads - 1)
        assert count_wrong(threads.state, 1000, work=100, repeats=3) == 0


@pytest.mark.parametrize("n_threads", [2, 3, 4])
def test_as_many_tasks_run_at_the_same_time_as_there_are_threads(n_threads):
    with ThreadPool(n_threads) as threads:
        for _ in range(5):
            words, met = np.zeros(1, np.int64), np.zeros(n_threads, np.bool_)
            _all_meet(threads.state, words, met)
            assert met.all()


def test_no_pool_runs_every_task_too():
    assert count_wrong(ALONE, 50, work=10, repeats=10) == 0


@pytest.mark.parametrize("n_threads", [1, 3])
def test_arguments_of_several_types(n_threads):
    first, second = np.arange(100.0), np.arange(100, dtype=np.float32)
    flags, out = np.arange(100) % 3 == 0, np.zeros(100)
    with ThreadPool(n_threads) as threads:
        for _ in range(50):
            _many_arguments(threads.state, first, second, np.float32(0.5), flags, out)
    np.testing.assert_array_equal(out, 50 * (first * 0.5 + second + flags))


@pytest.mark.parametrize("n_threads", [2, 3])
def test_regions_within_tasks(n_threads):
    counts = np.zeros((13, 17), np.int64)
    with ThreadPool(n_threads) as threads:
        _nested(threads.state, counts, 20, 200)
    assert (counts == 200).all()


@pytest.mark.parametrize("n_threads", [2, 3])
def test_callers_at_the_same_time(n_threads):
    """One of them gets the threads, the others work alone meanwhile."""
    wrong: list[int] = []
    with ThreadPool(n_threads) as threads:

        def call(n_tasks: int) -> None:
            for _ in range(20):
                wrong.append(count_wrong(threads.state, n_tasks, work=200, repeats=20))

        callers = [threading.Thread(target=call, args=(n,)) for n in (3, 8, 21, 50)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert wrong == [0] * 80


@pytest.mark.parametrize("n_threads", [2, 4])
def test_idle_threads_sleep_and_wake_up_again(n_threads):
    with ThreadPool(n_threads) as threads:
        for repeat in range(20):
            wait_until(lambda: n_sleeping(threads) == n_threads - 1)
            assert count_wrong(threads.state, 1 + repeat % 4, work=100, repeats=3) == 0


def test_work_that_comes_while_threads_fall_asleep():
    """Pauses around the time after which a thread goes to sleep."""
    with ThreadPool(3) as threads:
        for repeat in range(400):
            time.sleep((repeat % 40) * 1e-5)
            assert count_wrong(threads.state, 5, work=50) == 0


def test_sleeping_threads_take_no_processor_time():
    with ThreadPool(3) as threads:
        wait_until(lambda: n_sleeping(threads) == 2)
        before = time.process_time()
        time.sleep(0.5)
        # Two spinning threads would take 0.5 seconds or more.
        assert time.process_time() - before < 0.25


def test_a_pool_of_one_starts_no_threads():
    before = threading.active_count()
    with ThreadPool(1) as threads:
        assert threads.n_threads == 1
        assert threading.active_count() == before
        assert count_wrong(threads.state, 9) == 0


def test_close_ends_the_threads_and_what_follows_runs_alone():
    files, before = open_files(), threading.active_count()
    threads = ThreadPool(4)
    assert threading.active_count() == before + 3
    assert count_wrong(threads.state, 9, repeats=5) == 0
    threads.close()
    assert threading.active_count() == before
    assert open_files() == files
    assert count_wrong(threads.state, 9, repeats=5) == 0
    threads.close()  # nothing is left to close


def test_many_pools_one_after_the_other():
    """Closed while their threads spin, sleep or have not begun."""
    files, before = open_files(), threading.active_count()
    for i in range(30):
        with ThreadPool(3) as threads:
            if i % 3 == 1:
                assert count_wrong(threads.state, 5) == 0
            elif i % 3 == 2:
                wait_until(lambda threads=threads: n_sleeping(threads) == 2)
    assert threading.active_count() == before
    assert open_files() == files


def test_two_pools_at_the_same_time():
    with ThreadPool(2) as first, ThreadPool(3) as second:
        for _ in range(50):
            assert count_wrong(first.state, 6, work=50) == 0
            assert count_wrong(second.state, 6, work=50) == 0


@pytest.mark.parametrize("n_started", [0, 1, 2])
def test_a_thread_that_cannot_be_started(monkeypatch, n_started):
    """As where the system allows no more: what has been started ends, and no file stays open."""
    start, started = threading.Thread.start, []

    def start_some(thread: threading.Thread) -> None:
        if len(started) == n_started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    files, before = open_files(), threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", start_some)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        ThreadPool(4)
    monkeypatch.undo()
    assert len(started) == n_started
    assert threading.active_count() == before
    assert open_files() == files


def open_files() -> int:
    """How many files this process has open, as far as the system tells."""
    return len(os.listdir("/dev/fd"))
