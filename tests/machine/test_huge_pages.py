"""Memory for weights: blocks cut into pieces that do not overlap."""

import numpy as np
import pytest

from q4run.machine.huge_pages import Blocks, empty_bytes


@pytest.mark.parametrize("n_bytes", [0, 1, 4096, 5 << 20])
def test_bytes_begin_as_zeros(n_bytes):
    memory = empty_bytes(n_bytes)
    assert memory.shape == (n_bytes,)
    assert not memory.any()
    memory[:] = 7  # may be written to


def test_pieces_are_apart_and_aligned():
    blocks = Blocks()
    shapes = [(8, 18), (16, 1), (0, 5), (8, 4097), (8, 5 << 20), (24, 3)]
    pieces = [blocks.take(*shape) for shape in shapes]
    for number, piece in enumerate(pieces):
        piece[:] = number
    for number, (piece, shape) in enumerate(zip(pieces, shapes, strict=True)):
        assert piece.shape == shape
        assert (piece == number).all()
        assert piece.size == 0 or piece.ctypes.data % 64 == 0


def test_a_piece_outlives_its_blocks():
    piece = Blocks().take(8, 100)
    piece[:] = np.arange(100)
    assert (piece == np.arange(100)).all()
