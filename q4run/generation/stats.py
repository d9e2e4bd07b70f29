"""What a model has done, in figures that can be subtracted."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self


@dataclass(frozen=True)
class Work:
    """Counters as of a moment; subtract two to see what happened between.

    Sizes in bytes, times in seconds. ``wait_s`` is time that the computation stood still for the
    disk, ``read_s`` adds up over the reader threads, ``reading_s`` is the time in which at least
    one of them read. Of the ``misses``, ``read_ahead`` were on their way, or there, before they
    were asked for; ``begun_ahead`` counts all that were begun so, the vain ones included.
    ``requests`` are those to the disk that ``bytes_read`` came in. Fields can also be read as
    ``work["hits"]``.
    """

    tokens: int
    decode_s: float
    prompt_tokens: int
    prompt_s: float
    hits: int
    misses: int
    read_ahead: int
    begun_ahead: int
    bytes_read: int
    requests: int
    read_s: float
    reading_s: float
    wait_s: float

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __sub__(self, earlier: Self) -> Self:
        counted = {field.name: self[field.name] - earlier[field.name] for field in fields(Work)}
        return replace(self, **counted)

    @property
    def hit_rate(self) -> float | None:
        """The share of wanted experts that were in RAM; None where none was wanted."""
        wanted = self.hits + self.misses
        return self.hits / wanted if wanted else None


@dataclass(frozen=True)
class Stats(Work):
    """Also what is not counted up: the seconds that loading took, and the most bytes that the
    process has held. A difference keeps these as they are."""

    load_s: float
    peak_rss: int
