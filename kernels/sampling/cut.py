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
_BLOCK = 64


@kernel()
def cut(values, weights, wanted):
    """Returns the least of the largest values that weigh ``wanted``, and how many of it are needed.

    values: float32 (n,) without NaN; weights: int64 (n,), of equal values alike; wanted: from 1 to
    what all weigh. A radix selection (Knuth, The Art of Computer Programming 3, 5.2.5 and 5.3.3) on
    the bits of the values: the weights of a digit's buckets are added up from the highest on.
    """
    n = len(values)
    sums = np.empty(_MOST_BUCKETS + _N_ASIDE, np.int64)
    found, left = np.int64(0), wanted
    for shift, width in _DIGITS:
        last = (1 << width) - 1
        sums[:] = 0
        for begin in range(0, n, _BLOCK):
            end = min(begin + _BLOCK, n)
            n_found = 0
            for i in range(begin, end):
                n_found += _key(values[i]) >> (shift + width) == found
            if n_found == 0:
                continue
            for i in range(begin, end):
                key = _key(values[i])
                is_found = key >> (shift + width) == found
                bucket = (key >> shift) & last
                sums[bucket if is_found else _MOST_BUCKETS + i % _N_ASIDE] += weights[i]
        bucket = last
        while sums[bucket] < left:
            left -= sums[bucket]
            bucket -= 1
        found = found << width | bucket
    i = 0
    while _key(values[i]) != found:
        i += 1
    return values[i], (left - 1) // weights[i] + 1


@inline
def _key(value):
    """A whole number of 32 bits, in the order of the values; of 0.0 and -0.0 the same."""
    bits = np.int64(np.float32(value + np.float32(0)).view(np.int32))
    return (bits if bits >= 0 else bits ^ _ALL_BUT_SIGN) + _SIGN
