"""Reads at an offset go on until all is there, or the file ends."""

import os

import pytest

from q4run.disk.read_at import read_fully_at

CONTENT = bytes(range(100))


@pytest.fixture(params=["preadv", "pread"])
def file(request, tmp_path, monkeypatch):
    """A file of 100 bytes, on a system that gives at most 7 at once."""
    read, readv = os.pread, getattr(os, "preadv", None)
    if request.param == "pread":
        monkeypatch.delattr(os, "preadv", raising=False)
        monkeypatch.setattr(os, "pread", lambda file, n, offset: read(file, min(n, 7), offset))
    elif readv is None:
        pytest.skip("this system has no preadv")
    else:
        monkeypatch.setattr(os, "preadv", lambda file, to, at: readv(file, [to[0][:7]], at))
    (tmp_path / "file").write_bytes(CONTENT)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize(("offset", "size", "expected"), [(0, 100, 100), (5, 20, 20), (90, 40, 10)])
def test_short_reads_are_continued_until_the_file_ends(file, offset, size, expected):
    target = bytearray(size)
    assert read_fully_at(file, memoryview(target), offset) == expected
    assert target[:expected] == CONTENT[offset : offset + expected]
    assert not any(target[expected:])


def test_nothing_is_read_once_the_least_is_there(file):
    target = bytearray(50)
    assert read_fully_at(file, memoryview(target), 0, least=10) == 14
    assert target == CONTENT[:14] + bytes(36)
