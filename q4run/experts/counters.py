"""What an expert store has done, in figures."""

from dataclasses import dataclass


@dataclass
class ExpertCounters:
    """Counts since the store was made.

    ``read_s`` adds up over the reader threads; ``reading_s`` is the time in which at least one of
    them read, ``wait_s`` is the time that the computation stood
    still. Of the ``misses``, ``read_ahead`` were on their way, or there, before they were asked
    for; ``begun_ahead`` counts all reads that were begun so, the vain ones included. ``requests``
    are those to the disk that ``bytes_read`` came in.
    """

    hits: int = 0
    misses: int = 0
    read_ahead: int = 0
    begun_ahead: int = 0
    bytes_read: int = 0
    requests: int = 0
    read_s: float = 0.0
    reading_s: float = 0.0
    wait_s: float = 0.0
