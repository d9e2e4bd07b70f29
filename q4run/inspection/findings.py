"""What stands in the way on this machine, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from q4run.disk.file_systems import COMPRESSED, IN_MEMORY, NETWORKED, OVERLAY, USER_SPACE
from q4run.sizes import format_size

# A disk slower than a SATA SSD; memory too short for any model worth streaming; swap in real use.
SLOW_DISK_BYTES_S = 400 * 10**6
LITTLE_MEMORY_BYTES = 2 * 10**9
MUCH_SWAP_BYTES = 10**9
LARGE_CACHE_BYTES = 10**9

Finding = tuple[str, str]  # what is so, and what to do about it

_TRAITS = {
    COMPRESSED: (
        "The file system compresses: every read is unpacked by the processor, and direct reads are"
        " not what they say.",
        "Keep models uncompressed, for they hardly get smaller: on btrfs `chattr +m` on an empty"
        " folder before the model is copied into it, on ZFS a dataset with compression=off; or use"
        " another disk.",
    ),
    NETWORKED: (
        "The file system is reached over a network or from another system: each expert that is not"
        " in RAM is waited for that long.",
        "Copy the model to a disk of this machine.",
    ),
    OVERLAY: (
        "The file system is a container's overlay: reads go through its layers, and what is written"
        " there goes with the container.",
        "Put models on a volume or a bind mount (docker run -v FOLDER:/models).",
    ),
    IN_MEMORY: (
        "The file system is in memory: a model there takes its whole size of RAM before it is even"
        " opened.",
        "Put models on a disk.",
    ),
    USER_SPACE: (
        "The file system is served by a program (FUSE): each read takes a detour through it.",
        "Put models on a file system that the kernel has itself.",
    ),
}


def find(machine: dict[str, Any]) -> list[Finding]:
    """What of ``describe_machine`` (with the disk under "disk", or without) wants doing."""
    return [
        *_of_processor(machine),
        *_of_kernel_cache(machine["kernel_cache"]),
        *_of_memory(machine["memory"], machine["swap"]),
        *_of_disk(machine.get("disk")),
        *_of_power(machine["power"]),
    ]


def _of_processor(machine: dict[str, Any]) -> Iterator[Finding]:
    target, available = machine["simd"]["target"], machine["simd"]["available"]
    if available[0] == "generic":
        yield (
            "The processor has no SIMD instructions that q4run knows: it runs, but slowly.",
            "A processor with AVX2, or a 64-bit Arm one with the dot product, is many times"
            " faster.",
        )
    elif target != available[0]:
        yield (
            f"Q4RUN_SIMD={target} is set, and this processor can do better: {available[0]} is"
            f"{' many times' if target == 'generic' else ''} faster.",
            "Unset Q4RUN_SIMD.",
        )
    physical, usable = machine["cores"]["physical"], machine["cores"]["usable"]
    if physical and usable < physical:
        yield (
            f"This process may use {usable} of {physical} cores.",
            "Give it more (taskset, the container's --cpuset-cpus, the job's CPUs), if they are"
            " yours to give.",
        )
    quota, cores = machine["cores"]["quota"], min(physical or usable, usable)
    if quota is not None and quota < cores:
        threads = machine["threads"]["default"]
        yield (
            f"A limit (of a container, or of a service) gives the time of {quota:g} of {cores}"
            f" cores: {threads} thread{'s' * (threads != 1)} will compute.",
            "Raise it if the machine has more to give (docker --cpus, systemd CPUQuota).",
        )


def _of_kernel_cache(cache: dict[str, Any]) -> Iterator[Finding]:
    if not cache["writable"]:
        yield (
            "Kernels cannot be kept and are compiled anew at each start.",
            f"Make the folder {cache['folder']} writable, or name another in Q4RUN_CACHE.",
        )
    elif cache["kernels"] and not cache["usable"]:
        yield (
            "The kernels that are kept were compiled by another Python or numba, or for another"
            " processor.",
            "Nothing need be done: they are compiled again as they are needed, once.",
        )
    if cache["other_bytes"] > LARGE_CACHE_BYTES:
        yield (
            f"Kernels of other versions of q4run take {format_size(cache['other_bytes'])}.",
            "Delete the folder that holds the kernel cache; what is needed is compiled again.",
        )


def _of_memory(memory: dict[str, Any], swap: dict[str, Any]) -> Iterator[Finding]:
    if memory["limit"] is not None:
        yield (
            f"A limit (of a container, or of a service) leaves {format_size(memory['limit'])} of"
            f" the machine's {format_size(memory['machine'])} of RAM.",
            "Raise it if the machine has room (docker --memory, systemd MemoryMax): more experts"
            " stay in RAM then.",
        )
    if memory["available"] < LITTLE_MEMORY_BYTES:
        yield (
            f"Only {format_size(memory['available'])} of RAM is free.",
            "Close programs that take much, or use a smaller model; --ram-budget says how much"
            " q4run may take.",
        )
    if swap["used"] > MUCH_SWAP_BYTES:
        yield (
            f"{format_size(swap['used'])} of other programs' memory is swapped out: RAM has been"
            " short.",
            "Close programs that take much, or give a smaller --ram-budget: weights that are"
            " swapped out cost more time than experts that are read.",
        )


def _of_disk(disk: dict[str, Any] | None) -> Iterator[Finding]:
    if disk is None:
        return
    for trait in disk["traits"]:
        yield _TRAITS[trait]
    if disk["direct_io"] is False and IN_MEMORY not in disk["traits"]:
        yield (
            "The file system refuses direct reads: what is read goes through the page cache, and"
            " pushes other programs' files out of it.",
            "For models larger than RAM, a file system such as ext4, XFS or btrfs is better.",
        )
    speeds = disk["read_bytes_s"]
    if speeds and max(speeds.values()) < SLOW_DISK_BYTES_S:
        yield (
            f"The disk reads {format_size(max(speeds.values()))} a second: a model larger than RAM"
            " will mostly wait for it.",
            "Put the model on an NVMe SSD; several times that speed is usual.",
        )


def _of_power(power: dict[str, Any]) -> Iterator[Finding]:
    if power["battery"] is not None:
        yield (
            f"The machine runs on its battery ({power['battery']} % left), which slows most"
            " laptops down.",
            "Plug it in.",
        )
    if power["low_power"]:
        how = f" (the governor is {power['governor']})" if power["governor"] else ""
        yield (
            f"The processor is held back to save power{how}.",
            "Choose a faster power mode: the system's settings, `powerprofilesctl set performance`"
            " or `cpupower frequency-set -g performance`.",
        )
