"""Damaged GGUF files by the thousand: opening one works or raises q4run.errors.Error.

Never another exception, never memory beyond what the file can justify, never a hang (each test
has a time limit of its own).
"""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf import GGUFValueType
from helpers.gguf_builder import Builder, rich_file

from q4run.errors import Error, FormatError
from q4run.gguf_file import cursor as gguf_cursor
from q4run.gguf_file import open_gguf
from q4run.inspection.model import summarize

SEED = 20250405
HEADER = {version: rich_file(version).index(bytes(range(256))) for version in (1, 3)}
V3 = Builder()


def write(path: Path, content: bytes) -> None:
    """A new file each time: where one is replaced, some file systems wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def opens(path: Path) -> bool:
    """Whether the file opens; if so, everything in it must be usable and inside the file."""
    try:
        model = open_gguf(path)
    except Error:
        return False
    for key in model.metadata:
        _ = model.metadata[key]
        assert model.array_length(key) >= 0
    end = 0
    for tensor in sorted(model.tensors.values(), key=lambda tensor: tensor.offset):
        assert end <= tensor.offset
        end = tensor.offset + tensor.n_bytes
        assert tensor.n_bytes > 0
        assert 0 not in tensor.shape
    assert end <= model.size == path.stat().st_size
    summarize(model, list_tensors=True)
    return True


def outcomes(path: Path, cases: Iterator[bytes]) -> tuple[int, int]:
    """How many cases opened, and how many were refused."""
    opened = refused = 0
    for content in cases:
        write(path, content)
        if opens(path):
            opened += 1
        else:
            refused += 1
    return opened, refused


@pytest.mark.timeout(120)
@pytest.mark.parametrize("version", [1, 3])
def test_flipped_bytes(tmp_path: Path, version: int) -> None:
    content, header = rich_file(version), HEADER[version]
    chance = random.Random(SEED + version)

    def cases() -> Iterator[bytes]:
        for _ in range(2000):
            damaged = bytearray(content)
            for _ in range(chance.choice((1, 1, 1, 2, 8))):
                position = chance.randrange(header)
                if chance.random() < 0.5:
                    damaged[position] ^= 1 << chance.randrange(8)
                else:
                    damaged[position] = chance.randrange(256)
            yield bytes(damaged)

    opened, refused = outcomes(tmp_path / "model.gguf", cases())
    assert opened > 100  # a flip in a text or a number may be harmless
    assert refused > 1000


@pytest.mark.timeout(120)
@pytest.mark.parametrize("version", [1, 3])
def test_huge_numbers_at_every_byte(tmp_path: Path, version: int) -> None:
    """Wherever a length, count, type or offset stands, it becomes a huge or an odd number."""
    content, header = rich_file(version), HEADER[version]
    size = len(content)
    numbers = [struct.pack("<Q", n) for n in (2**64 - 1, 2**63, 2**40, 2**32, size, 0)]
    numbers += [struct.pack("<I", n) for n in (2**32 - 1, 2**31, 9)]

    def cases() -> Iterator[bytes]:
        for position in range(4, header, 2 if version == 1 else 1):
            for number in numbers[position % 3 :: 3]:
                yield content[:position] + number + content[position + len(number) :]

    _, refused = outcomes(tmp_path / "model.gguf", cases())
    assert refused > 1000


@pytest.mark.timeout(120)
def test_cut_out_and_inserted_pieces(tmp_path: Path) -> None:
    content, header = rich_file(3), HEADER[3]
    chance = random.Random(SEED)

    def cases() -> Iterator[bytes]:
        for _ in range(1000):
            start, end = sorted(chance.randrange(header) for _ in range(2))
            position = chance.randrange(header)
            piece = content[start:end]
            yield content[:start] + content[end:]
            yield content[:position] + piece + content[position:]

    _, refused = outcomes(tmp_path / "model.gguf", cases())
    assert refused > 1000


@pytest.mark.timeout(120)
@pytest.mark.parametrize("version", [1, 3])
def test_every_truncation(tmp_path: Path, version: int) -> None:
    content, path = rich_file(version), tmp_path / "model.gguf"
    for length in range(len(content)):
        write(path, content[:length])
        with pytest.raises(FormatError) as caught:
            open_gguf(path)
        assert "\n" not in str(caught.value)


@pytest.mark.timeout(120)
def test_random_bytes_behind_a_sound_start(tmp_path: Path) -> None:
    chance = random.Random(SEED)

    def cases() -> Iterator[bytes]:
        for _ in range(1000):
            counts = struct.pack("<QQ", chance.randrange(4), chance.randrange(4))
            # Mostly small numbers, so that many cases get some way into the file.
            weights = chance.choice(((1,) * 256, (400,) + (8,) * 14 + (1,) * 241))
            noise = bytes(chance.choices(range(256), weights, k=chance.randrange(400)))
            yield b"GGUF" + struct.pack("<I", chance.choice((1, 2, 3))) + counts + noise

    _, refused = outcomes(tmp_path / "model.gguf", cases())
    assert refused > 500


@pytest.mark.timeout(120)
def test_damaged_parts_of_a_split_model(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    contents = []
    for index in range(2):
        entries = [
            V3.number("split.no", index, GGUFValueType.UINT16),
            V3.number("split.count", 2, GGUFValueType.UINT16),
            V3.number("split.tensors.count", 2, GGUFValueType.INT32),
        ]
        contents.append(V3.file(entries, [V3.tensor(f"t{index}", [8], 0, 0)], bytes(32)))
    paths = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    refused = 0
    for _ in range(600):
        damaged = [bytearray(content) for content in contents]
        which = chance.randrange(2)
        damaged[which][chance.randrange(len(damaged[which]) - 32)] = chance.randrange(256)
        for path, content in zip(paths, damaged, strict=True):
            write(path, content)
        try:
            model = open_gguf(paths[0])
        except Error:
            refused += 1
        else:
            assert model.size == sum(part.stat().st_size for part in model.parts)
    assert 300 < refused < 600


# --- inside a file so large that huge numbers are possible -----------------------------------

HUGE_SIZE = 1 << 38


@pytest.fixture
def peak_of(tmp_path: Path) -> Callable[[bytes], tuple[str, int]]:
    """Puts a header before 256 GB of (sparse) zeros and opens that.

    Returns what came of it ("opened" or the error's class) and the peak of memory in bytes.
    """

    def measure(header: bytes) -> tuple[str, int]:
        path = tmp_path / "model.gguf"
        write(path, header)
        try:
            with path.open("r+b") as file:
                file.truncate(HUGE_SIZE)
        except OSError:
            pytest.skip("this file system has no sparse files of 256 GB")
        tracemalloc.start()
        try:
            open_gguf(path)
            outcome = "opened"
        except Error as error:
            outcome = type(error).__name__
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return outcome, peak

    return measure


@pytest.mark.timeout(60)
@pytest.mark.parametrize("count", [HUGE_SIZE // 16, 1 << 60, 2**64 - 1])
def test_huge_numbers_take_no_memory(
    peak_of: Callable[[bytes], tuple[str, int]], count: int
) -> None:
    length = V3.u64(count)
    array = V3.string("k") + V3.u32(GGUFValueType.ARRAY)
    headers = [
        V3.header(n_tensors=count),
        V3.header(n_entries=count),
        V3.header([length + b"key"]),
        V3.header([V3.string("k") + V3.u32(GGUFValueType.STRING) + length]),
        V3.header([array + V3.u32(GGUFValueType.STRING) + V3.u64(2) + length]),
        V3.header([], [length + b"name"]),
    ]
    headers += [V3.header([array + V3.u32(kind) + length]) for kind in GGUFValueType]
    for header in headers:
        outcome, peak = peak_of(header)
        assert outcome in ("FormatError", "UnsupportedError")
        assert peak < 8 << 20


@pytest.mark.timeout(60)
def test_the_largest_header_bounds_memory(
    peak_of: Callable[[bytes], tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst that passes the first checks, with a lower limit so that it is quick."""
    limit = 1 << 20
    monkeypatch.setattr(gguf_cursor, "MAX_HEADER_BYTES", limit)
    array = V3.string("k") + V3.u32(GGUFValueType.ARRAY)
    strings = array + V3.u32(GGUFValueType.STRING)
    first_string_too_long = strings + V3.u64(2) + V3.u64(limit)
    for header, expected in (
        (V3.header([strings + V3.u64(limit // 8 - 16)]), "opened"),
        (V3.header([array + V3.u32(GGUFValueType.UINT64) + V3.u64(limit // 8 - 16)]), "opened"),
        (V3.header([strings + V3.u64(limit // 8)]), "UnsupportedError"),
        (V3.header([first_string_too_long]), "UnsupportedError"),
        (V3.header([array + V3.u32(GGUFValueType.ARRAY) + V3.u64((1 << 16) + 1)]), "FormatError"),
        (V3.header(n_entries=1 << 16), "FormatError"),
        (V3.header(n_tensors=1 << 16), "UnsupportedError"),
    ):
        outcome, peak = peak_of(header)
        assert outcome == expected
        # Python objects of a directory entry take about five times its bytes.
        assert peak < 8 * limit
