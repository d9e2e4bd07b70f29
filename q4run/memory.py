"""How much memory there is, how much this process holds, and sizes as people write them."""

import re
import resource
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import psutil

from q4run.errors import Error
from q4run.machine.cgroups import cgroups

_PREFIXES = "kmgtpe"
_UNITS = {"": 1} | {prefix: 1000**i for i, prefix in enumerate(_PREFIXES, 1)}
_BINARY_UNITS = {f"{prefix}i": 1024**i for i, prefix in enumerate(_PREFIXES, 1)}
_SIZE = re.compile(
    rf"\s*([0-9]{{1,18}}(?:\.[0-9]{{1,18}})?)\s*(?:([{_PREFIXES}]i?)?b?|(%))\s*", re.IGNORECASE
)


def parse_size(text: str, total: int | None = None) -> int:
    """Bytes of ``6G`` (powers of 1000), ``6GiB`` (of 1024), ``500M``, or ``50%`` of ``total``.

    Raises ``Error`` for anything else and for a size of zero.
    """
    match = _SIZE.fullmatch(text)
    if match is None or (match[3] and total is None):
        share = " or a share such as 50%" if total is not None else ""
        raise Error(f"'{text}' is not a size: write for example 6G, 6GiB, 500M{share}")
    if match[3]:
        size = int(Fraction(match[1]) / 100 * (total or 0))
    else:
        unit = (match[2] or "").lower()
        size = int(Fraction(match[1]) * (_UNITS.get(unit) or _BINARY_UNITS[unit]))
    if size <= 0:
        raise Error(f"a size of '{text}' is nothing: give at least 1M")
    return size


def format_size(n_bytes: float) -> str:
    """``8.24 GB``: three significant digits, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n_bytes) < 999.5 or unit == "GB":
            break
        n_bytes /= 1000
    if unit == "B" or abs(n_bytes) >= 99.95:
        return f"{n_bytes:.0f} {unit}"
    return f"{n_bytes:.1f} {unit}" if abs(n_bytes) >= 9.995 else f"{n_bytes:.2f} {unit}"


def available_memory() -> int:
    """Bytes this process could still take: what is free, cut to the container's limit."""
    return max(0, min(psutil.virtual_memory().available, *_container_headroom(Path("/"))))


def reclaimable_headroom() -> int:
    """Bytes this process could still take if all of the page cache were given back for it.

    What a running model goes by: inside a container's limit, its own reads keep the cache full.
    """
    files = ("inactive_file", "active_file")
    return max(0, min(psutil.virtual_memory().available, *_container_headroom(Path("/"), files)))


def total_memory() -> int:
    """Bytes of RAM this process may ever use: the machine's, cut to the container's limit."""
    limits = [_read_number(folder / limit) for folder, limit, _ in _cgroup_folders(Path("/"))]
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)])


def _container_headroom(root: Path, reclaimable: Sequence[str] = ("inactive_file",)) -> list[int]:
    """What is left below each memory limit of the cgroups (v1 and v2) this process is in.

    A group's page cache counts as left: the kernel gives it back before it refuses memory.
    reclaimable: which figures of its ``memory.stat`` that is.
    """
    headroom = [sys.maxsize]
    for folder, limit_file, usage_file in _cgroup_folders(root):
        limit = _read_number(folder / limit_file)
        if limit is None:
            continue
        usage = _read_number(folder / usage_file) or 0
        headroom.append(limit - usage + _reclaimable(folder, reclaimable))
    return headroom


def _cgroup_folders(root: Path) -> list[tuple[Path, str, str]]:
    """The (folder, limit file, usage file) of every memory cgroup above this process."""
    files = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        2: ("memory.max", "memory.current"),
    }
    return [(folder, *files[version]) for folder, version in cgroups(root, "memory")]


def _read_number(path: Path) -> int | None:
    """The number in a control file; None where the file is absent or says ``max``."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(folder: Path, names: Sequence[str]) -> int:
    """Bytes of file pages charged to a cgroup, by the names of its figures."""
    try:
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        stat = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    except (OSError, ValueError):
        return 0
    return sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in names)


def peak_rss() -> int:
    """The most resident memory this process has ever held, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        # Linux's getrusage would also count what the parent held before the exec.
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
