"""Texts from files: UTF-8, with a byte order mark or without."""

import pytest

from q4run.errors import FormatError
from q4run.text.files import decode_text, read_text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"\xef\xbb\xbf", ""),
        (b"\xef\xbb\xbfa\r\nb", "a\r\nb"),
        ("a \ufeff 中".encode(), "a \ufeff 中"),
    ],
)
def test_only_a_byte_order_mark_is_left_out(data, text, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    assert read_text(path) == decode_text(data, "standard input") == text


@pytest.mark.parametrize("data", [b"\xff\xfea\0", b"na\xefve", "中".encode()[:2]])
def test_other_encodings_are_named(data, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"text\.txt: not text in UTF-8"):
        read_text(path)
    with pytest.raises(FormatError, match=r"^standard input: not text in UTF-8"):
        decode_text(data, "standard input")
