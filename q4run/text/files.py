"""Text files and standard input, in UTF-8."""

from pathlib import Path

from q4run.errors import FormatError


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark; line ends stay as they are.

    Raises ``FormatError`` where it is not UTF-8, and OSError where it cannot be read.
    """
    return decode_text(path.read_bytes(), str(path))


def decode_text(data: bytes, name: str) -> str:
    """The text of bytes that ``name`` is the source of, as ``read_text`` does it."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FormatError(f"{name}: not text in UTF-8; convert it first") from None
