"""Random matrices of any type as kernels take them, and what they are in float64."""

from collections.abc import Callable, Sequence

import numpy as np

from helpers.activations import ACTIVATIONS
from q4run.bench.models.random_blocks import random_blocks
from q4run.kernels.elementwise import SILU
from q4run.kernels.formats import find_format_named
from q4run.kernels.products.activations import GROUP, Int8Activations, quantize_activations
from q4run.kernels.products.products import INPUT, matrix_record
from q4run.kernels.products.strips import interleave, padded_rows

Int8 = Int8Activations | tuple[np.ndarray, np.ndarray, np.ndarray]


class MadeMatrix:
    """n_rows outputs by n_cols inputs, which keep the size of what they multiply."""

    def __init__(self, type_name: str, n_rows: int, n_cols: int, seed: int = 0) -> None:
        fmt = find_format_named(type_name)
        assert fmt is not None
        rng = np.random.default_rng([seed, n_rows, n_cols])
        n_blocks = n_rows * n_cols // fmt.block_size
        rows = random_blocks(type_name, n_blocks, n_cols**-0.5, rng).reshape(n_rows, -1)
        self.fmt = fmt
        self.strips = np.empty((padded_rows(n_rows), rows.shape[1]), np.uint8)
        interleave(fmt, rows, self.strips)
        self.record = matrix_record(fmt, self.strips.ctypes.data, n_rows, n_cols)
        self._values = fmt.dequantize(rows).astype(np.float64)

    @property
    def address(self) -> int:
        return self.strips.ctypes.data

    def product(self, x: np.ndarray) -> np.ndarray:
        """float64 (n_tokens, n_rows) of x, float32 (n_tokens, n_cols), as the type takes it."""
        if self.fmt.int8_activations:
            int8 = quantize_activations(np.ascontiguousarray(x))
            wide = np.repeat(int8.scales, GROUP, axis=1).astype(np.float64) * int8.q
        else:
            wide = x.astype(np.float64)
        return wide @ self._values.T


def check_feed_forward(
    matrices: tuple[MadeMatrix, MadeMatrix, MadeMatrix],
    x: np.ndarray,
    hidden: np.ndarray,
    out: np.ndarray,
    biases: Sequence[np.ndarray | float] = (0.0, 0.0, 0.0),
    activation: Callable[[np.ndarray, np.ndarray], np.ndarray] = ACTIVATIONS[SILU],
    norm: Callable[[np.ndarray], np.ndarray] = lambda hidden: hidden,
) -> None:
    """hidden = norm(silu(gate(x)) * up(x)) and out = down(hidden), each rounded as the types ask.

    Or another activation of gate and up; biases: what is added to gate, up and out.
    """
    gate, up, down = matrices
    for_gate, for_up, for_out = biases
    expected = norm(activation(gate.product(x) + for_gate, up.product(x) + for_up))
    np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(out, down.product(hidden) + for_out, rtol=1e-5, atol=2e-6)


def flat_int8(n_values: int) -> Int8Activations:
    """Flat room for so many values in int8, filled with what no value becomes."""
    n_groups = -(-n_values // GROUP)
    return Int8Activations(
        np.full(GROUP * n_groups, -128, np.int8),
        np.full(n_groups, np.nan, np.float32),
        np.full(2 * n_groups, 1 << 30, np.int32),
    )


def input_record(x: np.ndarray, int8: Int8 | None, n_tokens: int = 0, begin: int = 0) -> np.void:
    """An ``INPUT`` of flat room from value ``begin`` on; without int8 where nothing takes it."""
    record = np.zeros(1, INPUT)[0]
    record["n_tokens"], record["x"] = n_tokens, x[begin:].ctypes.data
    if int8 is not None:
        q, scales, sums = int8
        record["q"] = q[begin:].ctypes.data
        record["scales"] = scales[begin // GROUP :].ctypes.data
        record["sums"] = sums[2 * (begin // GROUP) :].ctypes.data
    return record
