"""The least-squares ternary code of a block, shared by TQ1_0 and TQ2_0.

For the k values of largest magnitude kept and the rest zeroed, the best scale is their mean
magnitude and the error falls by (their sum)^2 / k; the k with the largest fall is optimal
(Li et al., Ternary Weight Networks, arXiv:1605.04711, solved exactly instead of by threshold).
A block that holds only -a, 0 and +a is coded without loss when a is an f16.
"""

import numpy as np

from q4run.kernels.compile import kernel

BLOCK = 256


def ternarize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 (n, 256) -> scales float16 (n, 1) and codes uint8 (n, 256): 0, 1, 2 = -1, 0, +1."""
    scales = np.empty((len(values), 1), np.float32)
    codes = np.empty(values.shape, np.uint8)
    _ternarize(values, scales, codes)
    with np.errstate(over="ignore"):
        return scales.astype(np.float16), codes


@kernel()
def _ternarize(values, scales, codes):
    for block in range(len(values)):
        magnitudes = np.sort(np.abs(values[block]))[::-1]
        total = 0.0
        best_fall = 0.0
        scale = 0.0
        threshold = np.inf
        for kept in range(1, BLOCK + 1):
            total += magnitudes[kept - 1]
            fall = total * total / kept
            if fall > best_fall:
                best_fall = fall
                scale = total / kept
                threshold = magnitudes[kept - 1]
        scales[block, 0] = scale
        for i in range(BLOCK):
            value = values[block, i]
            kept_sign = np.sign(value) if abs(value) >= threshold else np.float32(0)
            codes[block, i] = np.uint8(np.int32(kept_sign) + 1)
