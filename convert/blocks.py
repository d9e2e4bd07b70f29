"""Rows that the source holds in a GGUF type already."""

from dataclasses import dataclass

import numpy as np

from q4run.kernels.formats import Format

# So many values are made from blocks at a time: what the codec needs beside them stays small.
PIECE_VALUES = 32 * 2**10


@dataclass(frozen=True)
class Blocks:
    """``raw``: uint8 (rows, bytes of a row) of the type ``fmt``."""

    raw: np.ndarray
    fmt: Format

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, rows: slice | np.ndarray) -> "Blocks":
        return Blocks(self.raw[rows], self.fmt)

    @property
    def n_cols(self) -> int:
        n_blocks: int = self.raw.shape[1] // self.fmt.type_size
        return n_blocks * self.fmt.block_size

    def dequantize(self) -> np.ndarray:
        """float32 (rows, columns)."""
        values = np.empty((len(self), self.n_cols), np.float32)
        step = max(1, PIECE_VALUES // self.n_cols)
        for start in range(0, len(self), step):
            values[start : start + step] = self.fmt.dequantize(self.raw[start : start + step])
        return values
