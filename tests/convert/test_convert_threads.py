"""Quantising on several threads: the order, the memory, and ends that leave no thread behind."""

import threading
import time

import numpy as np
import pytest

from q4run.convert.output import stream
from q4run.convert.output.stream import BlockPlan, least_plan, plan_blocks, stream_tensors
from q4run.convert.tensors import OutputTensor, PlannedTensor
from q4run.errors import BudgetError, Error, FormatError
from q4run.gguf_file.borders import padded
from q4run.kernels.formats import find_format_named
from q4run.models.parts import Role

Q8_0 = find_format_named("q8_0")
PLAN = BlockPlan(block_values=4 * 64, read_values=0, n_threads=4)


def tensor_of(values: np.ndarray, *, whole: bool = False) -> PlannedTensor:
    """An output tensor that reads from an array (matrices, rows, columns)."""

    def read(matrix: int, start: int, stop: int) -> np.ndarray:
        return values[matrix, start:stop]

    return PlannedTensor(OutputTensor("made.up", values.shape, Role.MATRIX, read, whole), Q8_0)


@pytest.fixture
def values():
    return np.random.default_rng(0).standard_normal((3, 100, 64)).astype(np.float32)


def our_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("read-ahead", "quantise"))]


def test_blocks_come_in_order_however_long_each_takes(values, monkeypatch):
    delays = iter(np.random.default_rng(1).uniform(0, 0.002, 1000).tolist())
    lock = threading.Lock()
    quantise = stream.quantize_rows

    def slowly(planned, matrix, rows):
        with lock:
            delay = next(delays)
        time.sleep(delay)
        return quantise(planned, matrix, rows)

    monkeypatch.setattr(stream, "quantize_rows", slowly)
    written = b"".join(stream_tensors([tensor_of(values)], PLAN))
    expected = Q8_0.quantize(values).tobytes()
    assert written[: len(expected)] == expected
    assert len(written) == padded(len(expected))
    assert not any(written[len(expected) :])


def test_the_matrix_is_told_to_whoever_quantises(values, monkeypatch):
    seen = []
    quantise = stream.quantize_rows

    def note(planned, matrix, rows):
        assert any(np.array_equal(rows, values[matrix, at : at + len(rows)]) for at in range(100))
        seen.append(matrix)
        return quantise(planned, matrix, rows)

    monkeypatch.setattr(stream, "quantize_rows", note)
    list(stream_tensors([tensor_of(values)], PLAN))
    assert set(seen) == {0, 1, 2}


def test_no_more_blocks_are_in_memory_than_the_plan_says(values, monkeypatch):
    begun = []
    quantise = stream.quantize_rows

    def note(planned, matrix, rows):
        begun.append(matrix)
        return quantise(planned, matrix, rows)

    monkeypatch.setattr(stream, "quantize_rows", note)
    chunks = stream_tensors([tensor_of(values)], PLAN)
    next(chunks)
    time.sleep(0.05)
    assert len(begun) <= PLAN.n_blocks
    chunks.close()


def test_threads_end_with_the_generator(values):
    chunks = stream_tensors([tensor_of(values)], PLAN)
    next(chunks)
    assert our_threads()
    chunks.close()
    assert our_threads() == []


@pytest.mark.parametrize(("value", "kind"), [(np.nan, FormatError), (1e6, Error)])
def test_an_error_in_a_thread_is_told_once_and_ends_all(values, value, kind):
    values[1, 50, 3] = value
    with pytest.raises(kind, match=r"made\.up"):
        list(stream_tensors([tensor_of(values)], PLAN))
    assert our_threads() == []


def test_an_error_while_reading_ends_all(values):
    def fail(matrix: int, start: int, stop: int) -> np.ndarray:
        if matrix == 1:
            raise FormatError("it ends here")
        return values[matrix, start:stop]

    tensor = OutputTensor("made.up", values.shape, Role.MATRIX, fail)
    with pytest.raises(FormatError, match="it ends here"):
        list(stream_tensors([PlannedTensor(tensor, Q8_0)], PLAN))
    assert our_threads() == []


def test_more_threads_need_more_memory_and_get_smaller_blocks():
    tensors = [tensor_of(np.empty((1, 4096, 4096), np.float32))]
    least = [least_plan(tensors, n_threads).n_bytes for n_threads in (1, 2, 16)]
    assert least == sorted(set(least))
    room = 200 * 10**6
    plans = [plan_blocks(tensors, room, 0, n_threads) for n_threads in (1, 2, 16, 64)]
    assert all(plan.n_bytes <= room for plan in plans)
    sizes = [plan.block_values for plan in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] >= 4096
    with pytest.raises(BudgetError, match="allow it --max-ram"):
        plan_blocks(tensors, least[2] - 1, 0, 16)
