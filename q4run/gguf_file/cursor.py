"""A cursor over the head of a file that compares every length with the file before using it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from q4run.errors import FormatError, UnsupportedError

# Far above any real model (a Llama 4 header is about 10 MB): inside a large file, a hostile
# header must neither fill the memory nor keep the scan busy for minutes.
MAX_HEADER_BYTES = 128 << 20
MAX_NAME_BYTES = 65535  # the specification's limit for a metadata key

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")

_READ_AHEAD = 1 << 20


class Cursor:
    """Reads a header front to back, loading little more of the file than that takes.

    ``place`` says what is being read and begins the error messages; ``length`` is the layout
    of string lengths, counts and dimensions: 64 bits, but 32 in GGUF version 1.
    """

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.buffer = bytearray()
        self.position = 0
        self.place = "the header"
        self.n_arrays = 0  # arrays inside arrays met so far
        self.length = U64
        self._file = file

    def damaged(self, problem: str) -> FormatError:
        """The error for content that cannot be right, whatever the file's size."""
        return FormatError(f"{self.path}: {self.place} {problem}; the file is damaged")

    def check_room(self, n_bytes: int) -> None:
        """Raise unless the header can go on for ``n_bytes`` more; loads nothing."""
        end = self.position + n_bytes
        if end > self.size:
            raise FormatError(
                f"{self.path}: {self.place} reaches past the end of the file ({self.size} bytes),"
                " which is cut short or damaged; download or copy it again"
            )
        if end > MAX_HEADER_BYTES:
            raise UnsupportedError(
                f"{self.path}: {self.place} reaches past the largest header that q4run reads"
                f" ({MAX_HEADER_BYTES >> 20} MiB); this is no usual model file"
            )

    def load(self, n_bytes: int) -> int:
        """Have the next ``n_bytes`` in the buffer; returns how far the buffer then reaches."""
        end = self.position + n_bytes
        loaded = len(self.buffer)
        if end > loaded:
            self.check_room(n_bytes)
            wanted = min(max(end, 2 * loaded, _READ_AHEAD), self.size, MAX_HEADER_BYTES)
            self.buffer += self._file.read(wanted - loaded)
            loaded = len(self.buffer)
            if end > loaded:
                raise FormatError(f"{self.path}: the file became shorter while it was read")
        return loaded

    def take(self, n_bytes: int) -> bytes:
        """The next ``n_bytes``, stepping over them."""
        self.load(n_bytes)
        start = self.position
        self.position += n_bytes
        return bytes(self.buffer[start : self.position])

    def number(self, layout: struct.Struct) -> Any:
        """The next number, of a layout that holds one."""
        return layout.unpack(self.take(layout.size))[0]

    def count(self, least_bytes: int) -> int:
        """The next count, of things that take ``least_bytes`` or more each of what follows."""
        count: int = self.number(self.length)
        self.check_room(count * least_bytes)
        return count

    def name(self) -> str:
        """The next string as a key or tensor name, which must be valid UTF-8."""
        n_bytes = self.number(self.length)
        if n_bytes > MAX_NAME_BYTES:
            raise self.damaged(f"has a name of {n_bytes} bytes")
        try:
            return self.take(n_bytes).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged("has a name that is not valid UTF-8") from None

    def skip_strings(self, count: int) -> None:
        """Step over ``count`` strings: the hot loop of the scan, so it keeps to locals."""
        unpack, width = self.length.unpack_from, self.length.size
        buffer, position, loaded = self.buffer, self.position, len(self.buffer)
        for _ in range(count):
            if position + width > loaded:
                self.position = position
                loaded = self.load(width)
            position += width + unpack(buffer, position)[0]
        self.position = position
        self.load(0)


def quote(value: object) -> str:
    """A value from a file, made safe for a one-line message: quoted, escaped and short."""
    text = repr(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
