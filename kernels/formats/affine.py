"""Rounding a block to codes above its smallest value, as ggml's reference does: Q4_1 and Q5_1."""

import numpy as np

from q4run.kernels.compile import kernel


def quantize_affine(values: np.ndarray, largest_code: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 (n, 32) -> scales and minima, float32 (n, 2), and codes, uint8 (n, 32).

    The smallest value gets code 0 and the largest ``largest_code``.
    """
    factors = np.empty((len(values), 2), np.float32)
    codes = np.empty(values.shape, np.uint8)
    _quantize(values, np.float32(largest_code), factors, codes)
    return factors, codes


@kernel()
def _quantize(values, largest_code, factors, codes):
    for block in range(len(values)):
        low = high = values[block, 0]
        for i in range(1, values.shape[1]):
            low, high = min(low, values[block, i]), max(high, values[block, i])
        scale = (high - low) / largest_code
        inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
        factors[block, 0], factors[block, 1] = scale, low
        for i in range(values.shape[1]):
            code = (values[block, i] - low) * inverse + np.float32(0.5)
            codes[block, i] = np.uint8(min(max(code, np.float32(0)), largest_code))
