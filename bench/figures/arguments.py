"""Numbers on the command lines of benchmarks: ``argparse`` refuses what makes no sense."""

import argparse
import math

from q4run.errors import Error
from q4run.machine.memory import total_memory
from q4run.sizes import parse_size


def positive(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{word}: not a number above 0")
    return value


def share(word: str) -> float:
    if (value := positive(word)) > 1:
        raise argparse.ArgumentTypeError(f"{word}: not a share of the experts, 1 at most")
    return value


def count(word: str) -> int:
    if not word.isdecimal() or (value := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{word}: not a whole number above 0")
    return value


def size(word: str) -> int:
    """Bytes, written as ``--ram-budget`` takes them."""
    try:
        return parse_size(word, total_memory())
    except Error as error:
        raise argparse.ArgumentTypeError(str(error)) from None
