"""Threads that run compiled tasks: started once, fed within a microsecond, asleep when idle.

Numba's own layers cost 100 microseconds a region where neither OpenMP nor TBB is installed, and an
OpenMP region waits for every thread, also for one that another program keeps from its core. Here a
thread takes tasks one by one and only tasks are waited for: a thread that is late takes none.

Idle threads spin for a while, then sleep in ``read`` on a pipe: they cost nothing while the disk
is waited for. All state is one int64 array, so that compiled code needs nothing else.
"""

import ctypes
import os
import threading

import numpy as np

from q4run.kernels.compiling.compile import kernel
from q4run.kernels.threads import atomics

# Places in the state, each on a cache line of its own where threads write.
_WORK = 0  # job number << 32 | tasks not yet taken
_DONE = 8  # tasks finished
_SLEEPING = 16  # threads that a byte in the pipe must wake
_BUSY = 24  # 1 while a job runs: a second caller then works alone
_STOP = 32
_FUNCTION, _ARGUMENTS, _N_TASKS = 40, 41, 42  # the job
_N_THREADS = 48
_READ_END, _WRITE_END = 49, 50
_READ, _WRITE, _YIELD = 51, 52, 53  # addresses of C functions
_WAKE_BYTES = 56  # what is written into the pipe: a byte for each thread

_LOW = (1 << 32) - 1
# About 100 microseconds: longer than the pauses between a token's products.
_SPINS_BEFORE_SLEEP = 4000
_SPINS_BEFORE_YIELD = 2000

Pool = np.ndarray  # int64, one-dimensional


def _state_for(n_threads: int) -> Pool:
    state = np.zeros(_WAKE_BYTES + 1 + n_threads // 8, np.int64)
    state[_N_THREADS] = 1  # until they have started
    return state


ALONE = _state_for(1)  # runs every task on the calling thread


class ThreadPool:
    """``n_threads`` threads, the caller's among them; ``state`` is what kernels take."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self.state = _state_for(n_threads)
        self._workers: list[threading.Thread] = []
        if n_threads == 1:
            return
        libc = ctypes.CDLL(None)
        for place, function in (
            (_READ, libc.read),
            (_WRITE, libc.write),
            (_YIELD, libc.sched_yield),
        ):
            self.state[place] = ctypes.cast(function, ctypes.c_void_p).value
        self._pipe = os.pipe()
        self.state[_READ_END], self.state[_WRITE_END] = self._pipe
        self.state[_N_THREADS] = n_threads
        try:
            for _ in range(n_threads - 1):
                worker = threading.Thread(target=work, args=(self.state,), daemon=True)
                worker.start()
                self._workers.append(worker)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the threads; jobs run on the caller alone from then on."""
        if self.state[_N_THREADS] == 1:
            return
        self.state[_STOP] = 1
        os.write(self._pipe[1], bytes(len(self._workers)))
        for worker in self._workers:
            worker.join()
        self._workers = []
        self.state[_N_THREADS] = 1
        for end in self._pipe:
            os.close(end)

    def __enter__(self) -> "ThreadPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@kernel()
def run_job(state, n_tasks, function, arguments):
    """Calls the C function at ``function`` with (arguments, task) for every task; returns when all
    are done. A second caller while a job runs, or a pool without threads, works alone."""
    if n_tasks <= 1 or state[_N_THREADS] == 1 or atomics.exchange(state, _BUSY, 1) != 0:
        for task in range(n_tasks):
            atomics.call(function, (arguments, task))
        return
    state[_FUNCTION], state[_ARGUMENTS], state[_N_TASKS] = function, arguments, n_tasks
    atomics.store(state, _DONE, 0)
    job = (atomics.load(state, _WORK) >> 32) + 1 & 0x7FFFFFFF
    atomics.store(state, _WORK, job << 32 | n_tasks)
    sleeping = atomics.exchange(state, _SLEEPING, 0)
    if sleeping > 0:
        wake = state[_WAKE_BYTES:].ctypes.data
        atomics.call_int(state[_WRITE], (np.int32(state[_WRITE_END]), wake, sleeping))
    while _take_task(state):
        pass
    spins = 0
    while atomics.load(state, _DONE) != n_tasks:
        atomics.spin_hint()
        spins += 1
        if spins % _SPINS_BEFORE_YIELD == 0:
            atomics.call_int(state[_YIELD], ())
    atomics.store(state, _BUSY, 0)


@kernel()
def _take_task(state):
    """Runs one task; False if there was none left to take."""
    while True:
        word = atomics.load(state, _WORK)
        left = word & _LOW
        if left == 0:
            return False
        # If the exchange succeeds this job was not over, and these were its own fields.
        function, arguments = state[_FUNCTION], state[_ARGUMENTS]
        task = state[_N_TASKS] - left
        if atomics.compare_exchange(state, _WORK, word, word - 1):
            atomics.call(function, (arguments, task))
            atomics.add(state, _DONE, 1)
            return True


@kernel()
def work(state):
    """What a thread of the pool does until it is stopped."""
    byte = np.zeros(1, np.uint8)
    idle = 0
    while atomics.load(state, _STOP) == 0:
        if _take_task(state):
            idle = 0
            continue
        idle += 1
        atomics.spin_hint()
        if idle >= _SPINS_BEFORE_SLEEP:
            _sleep(state, byte)
            idle = 0


@kernel()
def _sleep(state, byte):
    """Waits for a byte in the pipe, unless work comes between the announcement and the wait."""
    atomics.add(state, _SLEEPING, 1)
    if atomics.load(state, _WORK) & _LOW:
        announced = atomics.load(state, _SLEEPING)
        while announced > 0:
            if atomics.compare_exchange(state, _SLEEPING, announced, announced - 1):
                return
            announced = atomics.load(state, _SLEEPING)
    # A signal may interrupt the read: the byte is still to come.
    while atomics.load(state, _STOP) == 0:
        if atomics.call_int(state[_READ], (np.int32(state[_READ_END]), byte.ctypes.data, 1)) == 1:
            return
