"""Matrix products on the pool's threads: any number of them, of any formats, in one region.

A ``PRODUCT`` record says what is multiplied, by address; ``run_products`` cuts all of them into
pieces of whole strips and lets the threads take the pieces one by one.
"""

import numpy as np
from numba import carray

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.formats.base import Format
from q4run.kernels.products.activations import GROUP, Int8Activations, quantize_activations
from q4run.kernels.products.multiply import multiply_address
from q4run.kernels.products.strips import ROWS, padded_rows
from q4run.kernels.simd.memory import f32_pointer, i8_pointer, i32_pointer, u8_pointer
from q4run.kernels.threads import atomics
from q4run.kernels.threads.pool import ALONE, Pool
from q4run.kernels.threads.tasks import run_tasks

MATRIX = np.dtype(
    [
        ("multiply", np.int64),  # multiply_address of its format
        ("weights", np.int64),  # address of the interleaved rows
        ("n_rows", np.int64),
        ("n_cols", np.int64),
    ]
)
# float32 x (n_tokens, n_cols) and the same in int8, by address; what a format does not use may be
# missing.
INPUT = np.dtype(
    [
        ("n_tokens", np.int64),
        ("x", np.int64),
        ("q", np.int64),
        ("scales", np.int64),
        ("sums", np.int64),
    ]
)
PRODUCT = np.dtype(
    [
        ("matrix", MATRIX),
        ("input", INPUT),
        ("out", np.int64),  # float32 (n_tokens, n_rows)
        ("first_piece", np.int64),  # filled in by ``run_products``
    ]
)
# A piece is about this many multiplications, 5 to 10 microseconds of one core's time...
_PIECE_WORK = 1 << 18
# ...and a multiple of as many strips as a group of activations has rows.
PIECE_STRIPS = 32 // ROWS


def matrix_record(fmt: Format, address: int, n_rows: int, n_cols: int) -> np.void:
    """A ``MATRIX`` of interleaved rows at an address, which the caller must keep alive."""
    record: np.void = np.zeros(1, MATRIX)[0]
    record["multiply"], record["weights"] = multiply_address(fmt), address
    record["n_rows"], record["n_cols"] = n_rows, n_cols
    return record


def input_record(x: np.ndarray, quantized: Int8Activations | None = None) -> np.void:
    """An ``INPUT`` of C-contiguous arrays, which the caller must keep alive."""
    int8 = [array.ctypes.data for array in quantized] if quantized else [0, 0, 0]
    record: np.void = np.zeros(1, INPUT)[0]
    record["n_tokens"], record["x"] = len(x), x.ctypes.data
    record["q"], record["scales"], record["sums"] = int8
    return record


def matmul(
    fmt: Format, weights: np.ndarray, n_rows: int, x: np.ndarray, pool: Pool = ALONE
) -> np.ndarray:
    """x (n_tokens, n_cols) float32 @ weights.T -> float32 (n_tokens, n_rows).

    weights: uint8 (padded_rows(n_rows), row_bytes), interleaved.
    """
    x = np.ascontiguousarray(x)
    n_tokens, n_cols = x.shape
    if weights.shape != (padded_rows(n_rows), fmt.row_bytes(n_cols)):
        raise ValueError(f"{weights.shape} is not a matrix of {n_rows} rows of {n_cols} {fmt.name}")
    out = np.empty((n_tokens, n_rows), np.float32)
    quantized = quantize_activations(x) if fmt.int8_activations else None
    products = np.zeros(1, PRODUCT)
    products[0]["matrix"] = matrix_record(fmt, weights.ctypes.data, n_rows, n_cols)
    products[0]["input"] = input_record(x, quantized)
    products[0]["out"] = out.ctypes.data
    run_products(pool, products)
    return out


@kernel()
def run_products(pool, products):
    """Computes every product; products: an array of ``PRODUCT``."""
    n_pieces = 0
    for i in range(len(products)):
        products[i].first_piece = n_pieces
        n_pieces += count_pieces(products[i].matrix, products[i].input)
    run_tasks(pool, n_pieces, _run_piece, (products,))


@inline
def int8_arrays(input_, n_values):
    """q, scales and sums of an ``INPUT``, flat; empty where it has none."""
    n_values = n_values if input_.q else 0
    n_groups = n_values // GROUP
    return (
        carray(i8_pointer(input_.q), n_values),
        carray(f32_pointer(input_.scales), n_groups),
        carray(i32_pointer(input_.sums), 2 * n_groups),
    )


@inline
def owner_of(piece, records):
    """The index of the record that a piece belongs to, by their ``first_piece``."""
    i = len(records) - 1
    while records[i].first_piece > piece:
        i -= 1
    return i


@kernel()
def _run_piece(piece, products):
    product = products[owner_of(piece, products)]
    first, end = piece_strips(product.matrix, product.input, piece - product.first_piece)
    multiply(product.matrix, product.input, first, end, product.out)


@inline
def _strips_per_piece(matrix, input_):
    # At least one: a product without tokens or columns is one piece that does nothing.
    work = ROWS * max(matrix.n_cols * input_.n_tokens, 1)
    return max(PIECE_STRIPS, _PIECE_WORK // work // PIECE_STRIPS * PIECE_STRIPS)


@inline
def count_pieces(matrix, input_):
    """Into how many pieces a product is cut."""
    per_piece = _strips_per_piece(matrix, input_)
    n_strips = (matrix.n_rows + ROWS - 1) // ROWS
    return (n_strips + per_piece - 1) // per_piece


@inline
def piece_strips(matrix, input_, piece):
    """The strips of a piece: the first, and the one past the last."""
    per_piece = _strips_per_piece(matrix, input_)
    n_strips = (matrix.n_rows + ROWS - 1) // ROWS
    return per_piece * piece, min(n_strips, per_piece * (piece + 1))


@inline
def multiply(matrix, input_, first, end, out):
    """Strips ``first`` to ``end`` of a product, on the calling thread; out: an address."""
    arguments = (
        u8_pointer(matrix.weights),
        matrix.n_rows,
        matrix.n_cols,
        input_.n_tokens,
        f32_pointer(input_.x),
        i8_pointer(input_.q),
        f32_pointer(input_.scales),
        i32_pointer(input_.sums),
        first,
        end,
        f32_pointer(out),
    )
    atomics.call(matrix.multiply, arguments)
