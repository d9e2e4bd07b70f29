"""Sizes as people write them, and how much memory containers leave."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from q4run.errors import Error
from q4run.machine import memory
from q4run.machine.memory import available_memory, total_memory
from q4run.sizes import format_size, parse_size

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6G", 6 * 10**9),
        ("6GB", 6 * 10**9),
        ("6g", 6 * 10**9),
        ("6gb", 6 * 10**9),
        ("6GiB", 6 * GIB),
        ("6Gi", 6 * GIB),
        ("6gib", 6 * GIB),
        ("500M", 500 * 10**6),
        ("500MiB", 500 * 2**20),
        ("1.5G", 1_500_000_000),
        ("1.5GiB", 3 * 2**29),
        ("64k", 64_000),
        ("64KiB", 65536),
        ("2T", 2 * 10**12),
        ("2TiB", 2 * 2**40),
        ("3P", 3 * 10**15),
        ("1EB", 10**18),
        ("1EiB", 2**60),
        ("123456789", 123456789),
        ("77B", 77),
        ("  8 GB ", 8 * 10**9),
        ("8\tGB\n", 8 * 10**9),
        ("0.5k", 500),
        ("007", 7),
    ],
)
def test_sizes(text, expected):
    assert parse_size(text) == expected
    assert parse_size(text, 10**12) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("50%", 500), ("100%", 1000), ("12.5 %", 125), ("0.1%", 1), ("33.33%", 333)],
)
def test_shares(text, expected):
    assert parse_size(text, 1000) == expected


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", "G", "GiB", "%", "-1G", "+1G", "6 G B", "6Z", "6GG", "6Gb/s", "6,5G", "6.G"],
        *[".5G", "1e9", "0x10", "inf", "nan", "6i", "6iB", "6%G", "six", "6G 7G", "٣G"],
        *["9" * 400, "9" * 5000, "1." + "0" * 400],
    ],
)
def test_what_is_not_a_size(text):
    with pytest.raises(Error, match=r"is not a size: write for example 6G, 6GiB, 500M$"):
        parse_size(text)
    with pytest.raises(Error, match=r"is not a size: .* or a share such as 50%$"):
        parse_size(text, 10**12)


def test_a_share_needs_a_whole():
    with pytest.raises(Error, match="'50%' is not a size"):
        parse_size("50%")


@pytest.mark.parametrize("text", ["0", "0G", "0.0M", "0.4B", "0.0001k"])
def test_a_size_of_nothing(text):
    with pytest.raises(Error, match="is nothing: give at least 1M"):
        parse_size(text)


def test_a_share_of_nothing():
    with pytest.raises(Error, match="'0%' is nothing"):
        parse_size("0%", 10**12)


@pytest.mark.parametrize("unit", ["k", "M", "G", "T"])
def test_decimal_figures_are_exact(unit):
    """No binary fraction in between: 2.01 kB are 2010 bytes, not 2009."""
    power = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}[unit]
    for hundredths in range(1, 10_000):
        text = f"{hundredths // 100}.{hundredths % 100:02}{unit}"
        assert parse_size(text) == hundredths * power // 100


@pytest.mark.parametrize(
    ("n_bytes", "expected"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99_940, "99.9 kB"),
        (99_960, "100 kB"),
        (999_400, "999 kB"),
        (999_500, "1.00 MB"),
        (8_240_000_000, "8.24 GB"),
        (82_400_000_000, "82.4 GB"),
        (1_234_000_000_000, "1234 GB"),
        (-1500, "-1.50 kB"),
        (1234.5, "1.23 kB"),
    ],
)
def test_sizes_for_people(n_bytes, expected):
    assert format_size(n_bytes) == expected


@pytest.mark.parametrize(
    "n_bytes", [1, 12, 999, 1000, 1010, 12_300, 456_000, 99_900_000, 8 * 10**9]
)
def test_what_is_printed_can_be_read_back(n_bytes):
    assert parse_size(format_size(n_bytes)) == n_bytes


# Containers: control groups in made-up file trees.


class Tree:
    """Files under a root of their own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, files: dict[str, object]) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    def headroom(self) -> int:
        return min(memory._container_headroom(self.root))


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path)


V1 = "sys/fs/cgroup/memory"
UNLIMITED_V1 = 9223372036854771712


def test_without_control_groups_there_is_no_limit(tree):
    assert tree.headroom() == sys.maxsize
    tree.write({"proc/self/cgroup": ""})
    assert tree.headroom() == sys.maxsize


def test_v2_limit_of_the_own_group(tree):
    tree.write(
        {
            "proc/self/cgroup": "0::/user/app",
            "sys/fs/cgroup/user/app/memory.max": 4 * GIB,
            "sys/fs/cgroup/user/app/memory.current": GIB,
            "sys/fs/cgroup/user/app/memory.stat": "anon 5\ninactive_file 1000\nactive_file 7",
        }
    )
    assert tree.headroom() == 3 * GIB + 1000


def test_v2_limit_of_a_group_above(tree):
    tree.write(
        {
            "proc/self/cgroup": "0::/user/app/job",
            "sys/fs/cgroup/user/app/job/memory.max": "max",
            "sys/fs/cgroup/user/app/job/memory.current": 10,
            "sys/fs/cgroup/user/app/memory.max": 4 * GIB,
            "sys/fs/cgroup/user/app/memory.current": GIB,
            "sys/fs/cgroup/user/memory.max": 2 * GIB,
            "sys/fs/cgroup/user/memory.current": GIB + 5,
        }
    )
    assert tree.headroom() == GIB - 5


def test_v2_inside_a_container_the_mount_point_has_the_limit(tree):
    """The group's path may be the host's, which cannot be seen from inside."""
    tree.write(
        {
            "proc/self/cgroup": "0::/docker/0123abcd",
            "sys/fs/cgroup/memory.max": GIB,
            "sys/fs/cgroup/memory.current": 100,
        }
    )
    assert tree.headroom() == GIB - 100
    tree.write({"proc/self/cgroup": "0::/"})
    assert tree.headroom() == GIB - 100


@pytest.mark.parametrize(
    "line", ["5:memory:/docker/abc", "5:cpu,memory:/docker/abc", "11:memory,hugetlb:/docker/abc"]
)
def test_v1_limit(tree, line):
    tree.write(
        {
            "proc/self/cgroup": f"12:pids:/x\n{line}\n1:name=systemd:/y\n0::/unified",
            f"{V1}/docker/abc/memory.limit_in_bytes": 2 * GIB,
            f"{V1}/docker/abc/memory.usage_in_bytes": GIB,
            f"{V1}/docker/abc/memory.stat": "inactive_file 5\ntotal_inactive_file 300",
            f"{V1}/memory.limit_in_bytes": UNLIMITED_V1,
            f"{V1}/memory.usage_in_bytes": 30 * GIB,
        }
    )
    assert tree.headroom() == GIB + 300


def test_v1_inside_a_container(tree):
    tree.write(
        {
            "proc/self/cgroup": "5:memory:/docker/abc",
            f"{V1}/memory.limit_in_bytes": GIB,
            f"{V1}/memory.usage_in_bytes": 7,
        }
    )
    assert tree.headroom() == GIB - 7


def test_other_controllers_do_not_count(tree):
    tree.write(
        {
            "proc/self/cgroup": "3:memory_recursiveprot:/a\n4:cpu:/a",
            f"{V1}/a/memory.limit_in_bytes": 1,
            "sys/fs/cgroup/a/memory.max": 1,
        }
    )
    assert tree.headroom() == sys.maxsize


def test_a_group_over_its_limit_leaves_less_than_nothing(tree):
    tree.write(
        {
            "proc/self/cgroup": "0::/a:b",
            "sys/fs/cgroup/a:b/memory.max": 1000,
            "sys/fs/cgroup/a:b/memory.current": 5000,
        }
    )
    assert tree.headroom() == -4000


@pytest.mark.parametrize("stat", ["", "inactive_file", "inactive_file many", "inactive_file 1 2"])
def test_a_strange_stat_file_counts_as_nothing_to_give_back(tree, stat):
    tree.write(
        {
            "proc/self/cgroup": "0::/a",
            "sys/fs/cgroup/a/memory.max": 1000,
            "sys/fs/cgroup/a/memory.current": 400,
            "sys/fs/cgroup/a/memory.stat": stat,
        }
    )
    assert tree.headroom() == 600


@pytest.mark.parametrize("line", ["nonsense", "::", "0:", ":::", "0::/../../../../etc"])
def test_strange_lines_do_no_harm(tree, line):
    tree.write({"proc/self/cgroup": line})
    assert tree.headroom() == sys.maxsize


def test_the_container_cuts_what_the_machine_has(monkeypatch, tree):
    tree.write(
        {
            "proc/self/cgroup": "0::/a",
            "sys/fs/cgroup/a/memory.max": 50_000_000,
            "sys/fs/cgroup/a/memory.current": 10_000_000,
        }
    )
    monkeypatch.setattr(memory, "Path", lambda path: tree.root if path == "/" else Path(path))
    assert total_memory() == 50_000_000
    assert available_memory() == 40_000_000
    tree.write({"sys/fs/cgroup/a/memory.current": 60_000_000})
    assert available_memory() == 0
    tree.write({"sys/fs/cgroup/a/memory.max": "max"})
    assert total_memory() == psutil.virtual_memory().total


def test_this_machine():
    total = psutil.virtual_memory().total
    assert 0 < available_memory() <= total
    assert 10_000_000 < total_memory() <= total


def test_peak_rss_remembers_the_highest():
    code = (
        "import numpy as np\n"
        "from q4run.machine.memory import peak_rss\n"
        "before = peak_rss()\n"
        "array = np.ones(60_000_000, np.uint8)\n"
        "del array\n"
        "print(before, peak_rss())\n"
    )
    ballast = bytearray(b"1") * 200_000_000  # must not count for the child
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    del ballast
    before, after = map(int, run.stdout.split())
    assert 10_000_000 < before < 150_000_000
    assert 50_000_000 < after - before < 80_000_000
