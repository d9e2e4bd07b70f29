"""Sizes as people write and read them."""

import re
from fractions import Fraction

from q4run.errors import Error

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
