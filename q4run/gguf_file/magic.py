"""Is this a GGUF file that can be read here? If not, what is it?"""

from __future__ import annotations

import struct
from pathlib import Path

from q4run.errors import FormatError, UnsupportedError

MAGIC = b"GGUF"
_LFS_POINTER = b"version https://git-lfs"
VERSIONS = (1, 2, 3)

_PRE_GGUF = "a GGML model from before GGUF (2023); get the same model as GGUF"
_PYTORCH = "a PyTorch or pickle file; convert its checkpoint folder with `q4run convert`"
_COMPRESSED = "a compressed file; decompress it first"
_OTHER_FORMATS = (
    (b"lmgg", _PRE_GGUF),
    (b"fmgg", _PRE_GGUF),
    (b"tjgg", _PRE_GGUF),
    (b"algg", "a GGML adapter from before GGUF (2023)"),
    (b"PK\x03\x04", _PYTORCH),
    (b"\x80\x02", _PYTORCH),
    (b"\x80\x03", _PYTORCH),
    (b"\x80\x04", _PYTORCH),
    (b"\x80\x05", _PYTORCH),
    (b"\x1f\x8b", _COMPRESSED),
    (b"BZh", _COMPRESSED),
    (b"\x28\xb5\x2f\xfd", _COMPRESSED),
    (b"\xfd7zXZ\x00", _COMPRESSED),
    (b"7z\xbc\xaf", _COMPRESSED),
    (
        _LFS_POINTER,
        "a Git LFS pointer, not the model; fetch the file itself (`git lfs pull`)",
    ),
)


def check_magic(path: Path, head: bytes) -> int:
    """The GGUF version (1 to 3) of a file that begins with ``head``, some hundred bytes.

    Raises FormatError when it is not GGUF, naming what it seems to be, and UnsupportedError
    when it is big-endian GGUF or of a newer version.
    """
    if not head:
        raise FormatError(f"{path}: the file is empty; download or copy it again")
    if not head.startswith(MAGIC):
        raise FormatError(f"{path}: not a GGUF file, but {_describe(head)}")
    if len(head) < 8:
        raise FormatError(f"{path}: the file ends after {len(head)} bytes; download it again")
    version: int = struct.unpack_from("<I", head, 4)[0]
    if version in VERSIONS:
        return version
    if struct.unpack_from(">I", head, 4)[0] in VERSIONS:
        raise UnsupportedError(
            f"{path}: a big-endian GGUF file; get the little-endian one, or swap its byte order"
            " with `gguf-convert-endian` of the gguf package"
        )
    if VERSIONS[-1] < version < 1 << 16:
        raise UnsupportedError(
            f"{path}: GGUF version {version} is newer than this q4run reads (1 to 3); update q4run"
        )
    raise FormatError(f"{path}: GGUF version {version} does not exist; the file is damaged")


def refuse_lfs_pointer(path: Path, head: bytes) -> None:
    """Raises FormatError where a file that begins with ``head`` is what Git LFS leaves in place of
    the file itself."""
    if head.startswith(_LFS_POINTER):
        raise FormatError(
            f"{path}: a Git LFS pointer, not the file itself; fetch the folder's files"
            " (`git lfs pull`)"
        )


def _describe(head: bytes) -> str:
    for magic, description in _OTHER_FORMATS:
        if head.startswith(magic):
            return description
    if head[8:9] == b"{" and not any(head[5:8]):
        return "a safetensors file; convert its checkpoint folder with `q4run convert`"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "a web page saved under this name; download the file itself"
    if not any(head):
        return "zeros, as an unfinished download leaves them; download it again"
    # The head may end inside a character, hence the lenient decoding; control characters tell.
    text = head.decode("utf-8", "ignore")
    if 2 * len(text) >= len(head) and all(c.isprintable() or c in "\t\r\n" for c in text):
        return "a text file; give the model file"
    return f"of an unknown format (it begins with the bytes {head[:4].hex(' ')})"
