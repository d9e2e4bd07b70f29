"""What a run of a benchmark measured, and what several runs come to.

Figures are the JSON object of ``q4run bench`` without ``peer`` and ``ratio``: sizes in bytes, times
in seconds, None for what does not apply.
"""

import statistics
from typing import Any

Figures = dict[str, Any]


def summary_of(runs: list[Figures]) -> Figures:
    """``median_of`` the runs, with the least and the most of the speeds, and all runs."""
    spread = {}
    for phase in ("prefill", "decode"):
        speeds = [run[phase]["tok_s"] for run in runs]
        spread[phase] = {"least": min(speeds), "most": max(speeds)}
    return median_of(runs) | {"spread": spread, "runs": runs}


def median_of(runs: list[Figures]) -> Figures:
    """One run's figures, each the median over the runs; of peak memory, the most."""
    medians: Figures = _median(runs)
    return medians | {"peak_rss": max(run["peak_rss"] for run in runs)}


def _median(values: list[Any]) -> Any:
    values = [value for value in values if value is not None]
    if not values:
        return None
    first = values[0]
    if isinstance(first, dict):
        return {key: _median([value[key] for value in values]) for key in first}
    if isinstance(first, int):  # of an even number of runs, the lower middle one: no half bytes
        return statistics.median_low(values)
    return statistics.median(values) if isinstance(first, float) else first


def ratios_of(runs: list[Figures], peer_runs: list[Figures]) -> dict[str, list[float]]:
    """q4run over its peer, pair by pair: speeds, and peak memory."""
    pairs = list(zip(runs, peer_runs, strict=True))
    ratios = {
        phase: [ours[phase]["tok_s"] / theirs[phase]["tok_s"] for ours, theirs in pairs]
        for phase in ("prefill", "decode")
    }
    return ratios | {"peak_rss": [ours["peak_rss"] / theirs["peak_rss"] for ours, theirs in pairs]}


def set_disk_share(runs: list[Figures], rate: float) -> None:
    """Fills in what decoding read from disk, by the clock, as a share of ``rate`` bytes/s."""
    for run in runs:
        decode = run["decode"]
        if decode["disk_bytes"] is not None:
            decode["disk_share"] = decode["disk_bytes"] / decode["tokens"] * decode["tok_s"] / rate


def set_read_limit(runs: list[Figures], limit: float, bytes_per_token: int | None) -> None:
    """Fills in how many weights each run read from memory, as a share of ``limit`` bytes/s."""
    for run in runs:
        decode = run["decode"]
        decode["bytes_per_token"] = bytes_per_token
        if bytes_per_token is not None:
            decode["read_limit_ratio"] = bytes_per_token * decode["tok_s"] / limit
