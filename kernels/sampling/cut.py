"""The largest of many values that together weigh enough, found without sorting."""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel

_SIGN = 1 << 31
_ALL_BUT_SIGN = _SIGN - 1
_DIGITS = ((21, 11), (10, 11), (0, 10))  # lowest bit and bits of a key's digits, highest first
_MOST_BUCKETS = 1 << 11
# Where the weights of what is in no bucket go: to a few places in turn, as adding to one place has
# to wait for the addition before.
_N_ASIDE = 8
# So many values are looked at together, which is quick, before one of them is.
_BLOCK = np.uint64(64)


@kernel()
def cut(values, weights, wanted):
    """Returns the least of the largest values that weigh ``wanted``, and the place of the last one
    equal to it that is needed, places counting from the first.

    values: float32 (n,) without NaN; weights: int64 (n,), of equal values alike; wanted: from 1 to
    what all weigh. A radix selection (Knuth, The Art of Computer Programming 3, 5.2.5 and 5.3.3) on
    the bits of the values: the weights of a digit's buckets are added up from the highest on.
    """
    sums = np.empty(_MOST_BUCKETS + _N_ASIDE, np.int64)
    # Of unsigned numbers it is known that they are no places counted from the end.
    n = np.uint64(len(values))
    found, left = np.uint64(0), wanted
    for shift, width in _DIGITS:
        last = np.uint64((1 << width) - 1)
        sums[:] = 0
        for begin in range(np.uint64(0), n, _BLOCK):
            end = min(begin + _BLOCK, n)
            n_found = 0
            for i in range(begin, end):
                n_found += _key(values[i]) >> np.uint64(shift + width) == found
            if n_found == 0:
                continue
            for i in range(begin, end):
                key = _key(values[i])
                is_found = key >> np.uint64(shift + width) == found
                aside = np.uint64(_MOST_BUCKETS) + i % np.uint64(_N_ASIDE)
                sums[(key >> np.uint64(shift)) & last if is_found else aside] += weights[i]
        bucket = last
        while sums[bucket] < left:
            left -= sums[bucket]
            bucket -= np.uint64(1)
        found = found << np.uint64(width) | bucket
    place = np.uint64(0)
    while True:
        if _key(values[place]) == found:
            left -= weights[place]
            if left <= 0:
                return values[place], place
        place += np.uint64(1)


@inline
def _key(value):
    """A whole number of 32 bits, in the order of the values; of 0.0 and -0.0 the same."""
    bits = np.int64(np.float32(value + np.float32(0)).view(np.int32))
    return np.uint64((bits if bits >= 0 else bits ^ _ALL_BUT_SIGN) + _SIGN)
