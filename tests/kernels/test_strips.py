"""The layout of matrices in RAM: every byte at its place, whatever the number of rows."""

import gguf
import numpy as np
import pytest
from helpers.blocks import ALL, format_named, interleaved, random_blocks

from q4run.kernels.formats import find_format
from q4run.kernels.formats.base import Format
from q4run.kernels.products.strips import ROWS, interleave, padded_rows, to_strips

ROW_COUNTS = [0, 1, 2, 7, 8, 9, 15, 16, 17, 40]


def strips_by_definition(fmt: Format, rows: np.ndarray) -> np.ndarray:
    """The bytes of a matrix, unit by unit as the documentation of ``Format.fields`` has it."""
    n_blocks = rows.shape[1] // fmt.type_size
    padded = np.zeros((padded_rows(len(rows)), rows.shape[1]), np.uint8)
    padded[: len(rows)] = rows
    parts = []
    for strip in padded.reshape(-1, ROWS, n_blocks, fmt.type_size):
        for block in range(n_blocks):
            for offset, n_units, unit in fmt.fields:
                field = strip[:, block, offset : offset + n_units * unit]
                parts.append(field.reshape(ROWS, n_units, unit).swapaxes(0, 1).ravel())
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


@pytest.mark.parametrize("name", ALL)
def test_fields_are_the_whole_block(name):
    fmt = format_named(name)
    end = 0
    for offset, n_units, unit in fmt.fields:
        assert offset == end
        assert unit in (1, 2, 4)
        end += n_units * unit
    assert end == fmt.type_size


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_blocks", [1, 2, 5])
def test_every_byte_is_at_its_place(name, n_blocks):
    fmt = format_named(name)
    rng = np.random.default_rng(n_blocks)
    for n_rows in ROW_COUNTS:
        rows = rng.integers(0, 256, (n_rows, n_blocks * fmt.type_size)).astype(np.uint8)
        before = rows.copy()
        got = interleaved(fmt, rows)
        np.testing.assert_array_equal(got.ravel(), strips_by_definition(fmt, rows))
        np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize("name", ["f16", "bf16", "f32"])
def test_float_rows_of_any_width(name):
    fmt = format_named(name)
    rng = np.random.default_rng(0)
    for n_cols in (1, 3, 4, 7, 8, 15, 16, 17, 33, 100):
        rows = rng.integers(0, 256, (11, n_cols * fmt.type_size)).astype(np.uint8)
        np.testing.assert_array_equal(
            interleaved(fmt, rows).ravel(), strips_by_definition(fmt, rows)
        )


@pytest.mark.parametrize("name", ["q4_0", "q2_k", "f16"])
def test_rows_that_must_not_be_written_to(name):
    """Such as those of a mapped file, at any address."""
    fmt = format_named(name)
    n_bytes = 13 * fmt.row_bytes(512)
    data = np.random.default_rng(1).integers(0, 256, n_bytes + 1).astype(np.uint8).tobytes()
    rows = np.frombuffer(data, np.uint8)[1:].reshape(13, -1)
    np.testing.assert_array_equal(interleaved(fmt, rows).ravel(), strips_by_definition(fmt, rows))


@pytest.mark.parametrize(("n_rows", "row_bytes"), [(8, 36), (24, 36), (16, 18), (16, 54), (13, 36)])
def test_a_target_of_another_size_is_refused(n_rows, row_bytes):
    rows = np.zeros((13, 36), np.uint8)
    with pytest.raises(ValueError, match="do not fill"):
        interleave(format_named("q4_0"), rows, np.zeros((n_rows, row_bytes), np.uint8))


@pytest.mark.parametrize("name", ["q4_0", "q6_k", "f32"])
def test_a_type_with_kernels_keeps_its_own_bytes(name):
    fmt = format_named(name)
    rows = random_blocks(fmt, 11, 512, np.random.default_rng(2))
    target = np.empty((16, rows.shape[1]), np.uint8)
    to_strips(fmt, rows, target)
    np.testing.assert_array_equal(target, interleaved(fmt, rows))


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ3_S"])
@pytest.mark.parametrize("n_rows", [1, 8, 19])
def test_a_type_without_kernels_becomes_q8_0(name, n_rows):
    ggml_type = gguf.GGMLQuantizationType[name]
    fmt = find_format(ggml_type)
    assert fmt is not None
    q8_0 = format_named("q8_0")
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 256, (n_rows, 2, fmt.type_size)).astype(np.uint8)
    rows[:, :, :2] = rng.uniform(-1, 1, (n_rows, 2, 1)).astype(np.float16).view(np.uint8)
    rows = rows.reshape(n_rows, 2 * fmt.type_size)
    target = np.full((padded_rows(n_rows), q8_0.row_bytes(512)), 0xAA, np.uint8)
    to_strips(fmt, rows, target)
    values = gguf.quants.dequantize(rows, ggml_type).reshape(n_rows, 512)
    np.testing.assert_array_equal(target, interleaved(q8_0, q8_0.quantize(values)))
