"""How long something takes, again and again."""

import statistics
import time
from collections.abc import Callable


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    return statistics.median(seconds_of(run) for _ in range(rounds))
