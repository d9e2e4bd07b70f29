"""The draw of a token from those that the filters leave.

What a filter leaves are the first tokens of one order: larger logits first, lower ids first among
equals. So it is told by the least logit left, and by the last place of those equal to it.
"""

import math

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.sampling.cut import cut
from q4run.kernels.sampling.weights import weigh

_F64_ONE = np.float64(1)
# So many logits are looked at together, which is quick, before one of them is.
_WIDTH = 64
_BLOCK = np.uint64(_WIDTH)  # of unsigned numbers it is known that none counts from the end
_END = np.uint64(2**63)  # behind all places


@kernel()
def choose(logits, largest, top_k, top_p, min_logit, temperature, uniform, bits, ids, weights):
    """Returns the id of a token, as likely as its softmax at ``temperature`` among those left.

    logits: float32 (n,) without NaN, written to; largest: of them, finite; top_k: how many of the
    best are left, 0: all; top_p: float64, the share of all probability that the best that are left
    have, 1: all; min_logit: float32, the least that is left, -inf: all; temperature: float64 above
    0; uniform: float64 from 0 to below 1; bits: ``weight_bits(n)``; ids: int32 (n,) and weights:
    int64 (n,), written to.
    """
    n = len(logits)
    for i in range(n):
        ids[i] = i
    if 0 < top_k < n:
        n = _keep(_below_best(logits, top_k), _END, n, logits, ids, weights)
        weights[:n] = 1
        least, last = cut(logits[:n], weights[:n], top_k)
        n = _keep(least, last, n, logits, ids, weights)
    wanted = np.int64(0)
    if top_p < 1:
        weigh(logits[:n], largest, _F64_ONE, bits, weights)
        wanted = max(np.int64(1), np.int64(math.ceil(top_p * _sum(weights[:n]))))
    if min_logit > -np.inf:  # before top-p, of which it leaves less to look at
        n = _keep(min_logit, _END, n, logits, ids, weights)
    if top_p < 1 and wanted <= _sum(weights[:n]):
        least, last = cut(logits[:n], weights[:n], wanted)
        n = _keep(least, last, n, logits, ids, weights)
    weigh(logits[:n], largest, temperature, bits, weights)
    return np.int64(ids[_drawn(uniform, weights[:n])])


@inline
def _below_best(logits, k):
    """A number that at least ``k`` logits reach, often few more: the k-th of the blocks' best."""
    n_blocks = (len(logits) + _WIDTH - 1) // _WIDTH
    if k > n_blocks:
        return np.float32(-np.inf)
    best = np.empty(n_blocks, np.float32)
    for block in range(n_blocks):
        begin = block * _WIDTH
        largest = logits[begin]
        for i in range(begin + 1, min(begin + _WIDTH, len(logits))):
            largest = max(largest, logits[i])
        best[block] = largest
    return cut(best, np.ones(n_blocks, np.int64), k)[0]


@inline
def _keep(least, last, n, logits, ids, weights):
    """Moves what is left of the first ``n`` to the front; returns how many that are. Of those equal
    to the least the one in place ``last`` is the last."""
    n_left = np.uint64(0)
    for begin in range(np.uint64(0), np.uint64(n), _BLOCK):
        end = min(begin + _BLOCK, np.uint64(n))
        n_some = 0
        for i in range(begin, end):
            n_some += logits[i] >= least
        if n_some == 0:
            continue
        for i in range(begin, end):
            logit = logits[i]
            logits[n_left], ids[n_left], weights[n_left] = logit, ids[i], weights[i]
            n_left += np.uint64((logit > least) | ((logit == least) & (i <= last)))
    return np.int64(n_left)


@inline
def _sum(weights):
    total = np.int64(0)
    for i in range(len(weights)):
        total += weights[i]
    return total


@inline
def _drawn(uniform, weights):
    """The first index up to which the weights add up to more than this share of all."""
    left = np.int64(uniform * _sum(weights))
    for i in range(len(weights) - 1):
        left -= weights[i]
        if left < 0:
            return i
    return len(weights) - 1
