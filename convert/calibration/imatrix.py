"""Importance matrices as llama.cpp's imatrix tool writes them: in GGUF, or in its older form.

GGUF (llama.cpp pull request 9400): ``general.type`` is ``imatrix``, and every tensor NAME that was
observed has NAME.in_sum2, f32 (n_matrices, n_cols), the sums over all tokens of the squares of
what each column multiplies, and NAME.counts, f32 (n_matrices, 1), how many tokens those are.
The older form is a stream of little-endian int32 and f32: the number of entries; for each the
name's length, the name, a number of calls, the number of values, the values, each a mean square
times the number of calls; then the number of chunks and the name of the text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from q4run.convert.output.leftovers import remove_leftovers, temporary_path
from q4run.errors import Error, FormatError
from q4run.gguf_file import GGUFFile, TensorInfo, open_gguf

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_NAME_BYTES = 1024
# Far above any real one (Maverick's has 100 MB): what a file claims is read into memory.
MAX_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Entry:
    """One tensor's statistics: ``sums`` of squares, float32 (n_matrices, n_cols), over ``counts``
    tokens, float32 (n_matrices,)."""

    sums: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class ImportanceMatrix:
    """Statistics by tensor name, of ``n_chunks`` windows of ``chunk_size`` tokens of ``text``;
    ``chunk_size`` is 0 where the file does not tell."""

    entries: Mapping[str, Entry]
    text: str
    n_chunks: int
    chunk_size: int


def write_imatrix(path: Path, imatrix: ImportanceMatrix) -> None:
    """Writes the GGUF form; the file appears under its name only when it is complete.

    Raises ``Error`` where it cannot be written.
    """
    writer = _Writer(None, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [imatrix.text])
    writer.add_uint32("imatrix.chunk_count", imatrix.n_chunks)
    writer.add_uint32("imatrix.chunk_size", imatrix.chunk_size)
    for name, entry in sorted(imatrix.entries.items()):
        writer.add_tensor(name + SUMS, entry.sums)
        writer.add_tensor(name + COUNTS, entry.counts.reshape(-1, 1))
    remove_leftovers(path)
    temporary = temporary_path(path)
    try:
        try:
            writer.write_header_to_file(temporary)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            temporary.replace(path)
        finally:
            writer.close()
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error.strerror or error}") from None


class _Writer(gguf.GGUFWriter):
    def add_architecture(self) -> None:
        """An importance matrix has none."""


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Reads either form. Raises ``FormatError`` for a damaged file or another kind of file."""
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}") from None
    imatrix = _read_gguf(open_gguf(path)) if is_gguf else _read_old(path)
    for name, entry in imatrix.entries.items():
        numbers = np.concatenate([entry.sums.reshape(-1), entry.counts])
        if not np.isfinite(numbers).all() or (numbers < 0).any():
            raise FormatError(
                f"{path}: {name} holds numbers that are negative or not finite; make it again"
            )
    if not imatrix.entries:
        raise FormatError(f"{path}: holds no importance matrix of any tensor; make it again")
    return imatrix


def _read_gguf(file: GGUFFile) -> ImportanceMatrix:
    kind = file.get_str(gguf.Keys.General.TYPE, "model")
    if kind != "imatrix":
        raise FormatError(
            f"{file.path}: is a {kind[:40]!r}, not an importance matrix; make one with q4run"
            " imatrix"
        )
    if file.size > MAX_BYTES:
        raise FormatError(f"{file.path}: {file.size} bytes are too many for an importance matrix")
    entries = {}
    for name in file.tensors:
        if name.endswith(SUMS):
            base = name.removesuffix(SUMS)
            sums = _read_tensor(file.tensors[name])
            counts = _read_tensor(file.tensor(base + COUNTS))
            sums = sums.reshape(-1, sums.shape[-1] if sums.ndim else 1)
            # One count for all experts is what files have that were made of the older form.
            if counts.size not in (1, len(sums)) or sums.size == 0:
                raise FormatError(
                    f"{file.path}: {base} has {len(sums)} rows of sums but {counts.size} counts;"
                    " the file is damaged"
                )
            entries[base] = Entry(sums, counts.reshape(-1))
    texts = file.get_array("imatrix.datasets", str, [])
    return ImportanceMatrix(
        entries,
        texts[0] if texts else "",
        file.get_int("imatrix.chunk_count", 0, maximum=2**31 - 1),
        file.get_int("imatrix.chunk_size", 0, maximum=2**31 - 1),
    )


def _read_tensor(tensor: TensorInfo) -> np.ndarray:
    if tensor.type != gguf.GGMLQuantizationType.F32:
        raise FormatError(f"{tensor.path}: {tensor.name} is not f32; the file is damaged")
    values = np.fromfile(tensor.path, "<f4", tensor.n_elements, offset=tensor.offset)
    if len(values) != tensor.n_elements:
        raise FormatError(f"{tensor.path}: the file became shorter while it was read")
    return values.reshape(tensor.shape)


def _read_old(path: Path) -> ImportanceMatrix:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise FormatError(f"{path}: {size} bytes are too many for an importance matrix")
    data = _OldForm(path, path.read_bytes())
    entries = {}
    for _ in range(data.count(least_bytes=16)):
        name = data.text(MAX_NAME_BYTES)
        n_calls = data.count(least_bytes=0)
        values = data.floats(data.count(least_bytes=4))
        # Which values belong to which expert follows from the tensor that they are for.
        entries[name] = Entry(values[None], np.array([max(n_calls, 1)], np.float32))
    if data.is_at_end:  # the oldest files end here
        return ImportanceMatrix(entries, "", 0, 0)
    n_chunks = data.count(least_bytes=0)
    return ImportanceMatrix(entries, data.text(size), n_chunks, 0)


class _OldForm:
    """The bytes of the older form, every length checked against what is left."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        self._data = data
        self._at = 0

    @property
    def is_at_end(self) -> bool:
        return self._at == len(self._data)

    def count(self, *, least_bytes: int) -> int:
        """The next number, of things that take so many bytes or more each."""
        number = int.from_bytes(self._take(4), "little", signed=True)
        if number < 0 or number * least_bytes > len(self._data) - self._at:
            raise self._damaged()
        return number

    def text(self, most_bytes: int) -> str:
        n_bytes = self.count(least_bytes=1)
        if n_bytes > most_bytes:
            raise self._damaged()
        return self._take(n_bytes).decode("utf-8", "replace").rstrip("\0")

    def floats(self, count: int) -> np.ndarray:
        return np.frombuffer(self._take(4 * count), "<f4").astype(np.float32)

    def _take(self, n_bytes: int) -> bytes:
        taken = self._data[self._at : self._at + n_bytes]
        if len(taken) != n_bytes:
            raise self._damaged()
        self._at += n_bytes
        return taken

    def _damaged(self) -> FormatError:
        return FormatError(
            f"{self._path}: is no importance matrix, or damaged: give a file that q4run imatrix or"
            " llama-imatrix wrote"
        )
