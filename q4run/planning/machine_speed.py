"""What this machine gives: measured in a few seconds, remembered for a day, or told."""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from q4run.disk.speed import (
    DiskSpeeds,
    best_candidate,
    is_measurable,
    known_speeds,
    remembered_speeds,
)
from q4run.errors import Error
from q4run.kernels.compiling.compile import CACHE_FOLDER
from q4run.kernels.formats import Format
from q4run.kernels.threads.pool import ThreadPool
from q4run.machine.cores import choose_threads, usable_cores
from q4run.machine.interrupts import ending_cleanly
from q4run.machine.load import Load
from q4run.machine.notes import FOLDER, Notes
from q4run.models.config import ModelConfig
from q4run.models.parts import Attention
from q4run.planning.attention_speed import AttentionSpeed, measure_attention
from q4run.planning.kernel_speed import KernelSpeed, measure_kernels
from q4run.planning.memory_speed import read_limit

Progress = Callable[[str, int, int], None]

_NOTES = FOLDER / "speeds.json"
_PROBE_BYTES = 256 << 20
# Long enough for the ups and downs of a disk that others use too.
_DISK_S = 3.0
# What tells notes of other kernels, and of other figures, apart.
_KERNELS = f"{CACHE_FOLDER.name} {' '.join(one.name for one in fields(KernelSpeed))}"
# Where a core's speed is given instead of measured, roughly as on a Zen 4: what its kernels give
# with one token and from memory, bytes it brings into slots, and attention, as shares of that;
# unpacking, as a number of tokens that take as long; what is lost between products and experts.
_USUAL_TOKEN_SHARE = 0.4
_USUAL_MEMORY_SHARE = 0.85
_USUAL_FILL_SHARE = 0.012
_USUAL_FIRST_FILL_SHARE = 0.006
_USUAL_UNPACKING = 1.5
_USUAL_REGION_S = 5e-6
_USUAL_FILL_S = 350e-6
_USUAL_PROMPT_ATTENTION_SHARE = 0.27
_USUAL_DECODE_ATTENTION_SHARE = 0.035


@dataclass(frozen=True)
class Given:
    """What the user says of the machine: bytes and operations per second; None is measured.

    core: of one thread in prompts, two operations for each weight and token; ram: bytes in all.
    """

    threads: int | None = None
    memory: float | None = None
    disk: float | None = None
    core: float | None = None
    ram: int | None = None


@dataclass(frozen=True)
class MachineSpeed:
    """What the forecast divides by; per second.

    memory: bytes that all threads read together at most; kernels: by the name of a tensor's type,
    for these threads and this memory; attention: with the model's heads and keys.
    """

    threads: int
    memory: float
    disk: float
    kernels: Mapping[str, KernelSpeed]
    attention: AttentionSpeed
    # What other programs took while any of it was measured.
    load: Load = field(default_factory=Load, compare=False)

    def kernel(self, name: str) -> KernelSpeed:
        """Of a type; of those that hold next to nothing of a model, the slowest measured."""
        return self.kernels.get(name) or min(self.kernels.values(), key=lambda speed: speed.memory)


def find_speeds(
    config: ModelConfig,
    kv_type: str,
    formats: Sequence[Format],
    paths: Sequence[Path],
    given: Given,
    *,
    anew: bool = False,
    progress: Progress | None = None,
) -> MachineSpeed:
    """Everything that is not given, as remembered or (``anew``, or after a day) measured.

    paths: the model's files, whose disk counts; none: the disk that the kernels are kept on. More
    threads than this machine has can be asked for where its memory's speed is given.
    """
    if given.threads is not None and given.memory is not None:
        threads = given.threads
    else:
        threads = choose_threads(given.threads)
    own = min(threads, usable_cores())
    notes = Notes(_NOTES, anew=anew)
    n_steps = len(formats) + 2
    told = progress or (lambda what, done, total: None)

    told("measuring", 0, n_steps)
    own_memory = 0.0
    if given.memory is None or given.core is None:
        noted, _ = notes.figures(f"memory {own}", lambda: {"memory": read_limit(own)})
        own_memory = noted["memory"]
    memory = given.memory or own_memory
    kernels = {}
    for step, fmt in enumerate(formats, 1):
        told(f"measuring {fmt.name}", step, n_steps)
        if given.core is not None:
            kernels[fmt.name] = _usual_speed(fmt, given.core, threads, memory)
        else:
            speed = _kernel_speed(fmt, notes, own)
            kernels[fmt.name] = _elsewhere(speed, own, own_memory, threads, memory)
    if given.core is not None:
        attention = _usual_attention(given.core, threads, memory)
    else:
        attention = _attention_speed(config.layers[0].attention, kv_type, notes, own)
        per_thread = attention.decode / own
        attention = replace(attention, decode=min(memory, threads * per_thread))
    told("measuring the disk", n_steps - 1, n_steps)
    disk, load = (given.disk, Load()) if given.disk else disk_speed(paths, anew=anew)
    return MachineSpeed(threads, memory, disk, kernels, attention, notes.load | load)


def _kernel_speed(fmt: Format, notes: Notes, threads: int) -> KernelSpeed:
    def measure() -> dict[str, float]:
        with ThreadPool(threads) as pool:
            return asdict(measure_kernels(fmt, pool.state, threads))

    return KernelSpeed(**notes.figures(f"{fmt.name} {threads} {_KERNELS}", measure)[0])


def _attention_speed(part: Attention, kv_type: str, notes: Notes, threads: int) -> AttentionSpeed:
    def measure() -> dict[str, float]:
        with ThreadPool(threads) as pool:
            return asdict(measure_attention(part, kv_type, pool.state, threads))

    heads = f"{part.n_head} {part.n_head_kv} {part.key_dim}"
    name = f"attention {heads} {kv_type} {threads} {CACHE_FOLDER.name}"
    return AttentionSpeed(**notes.figures(name, measure)[0])


def _elsewhere(
    speed: KernelSpeed, own: int, own_memory: float, threads: int, memory: float
) -> KernelSpeed:
    """What was measured with ``own`` threads, for another number of them or other memory: the same
    share of what memory, and the threads' own caches, allow at most."""
    share = min(1.0, speed.memory / min(own_memory, own * speed.core))
    return replace(speed, memory=share * min(memory, threads * speed.core))


def _usual_speed(fmt: Format, core: float, threads: int, memory: float) -> KernelSpeed:
    """A type's speed on a core that multiplies so fast in prompts, by proportions as usual."""
    from_cache = _USUAL_TOKEN_SHARE * core / 2 * fmt.in_ram.bits_per_weight / 8
    from_memory = _USUAL_MEMORY_SHARE * min(memory, threads * from_cache)
    return KernelSpeed(
        memory=from_memory,
        core=from_cache,
        region_s=_USUAL_REGION_S,
        prompt=core,
        unpack_s=_USUAL_UNPACKING * 2 / core,
        fill=_USUAL_FILL_SHARE * core,
        fill_s=_USUAL_FILL_S,
        first_fill=_USUAL_FIRST_FILL_SHARE * core,
    )


def _usual_attention(core: float, threads: int, memory: float) -> AttentionSpeed:
    return AttentionSpeed(
        decode=min(memory, threads * _USUAL_DECODE_ATTENTION_SHARE * core),
        prompt=_USUAL_PROMPT_ATTENTION_SHARE * core,
    )


def disk_speed(paths: Sequence[Path], *, anew: bool = False) -> tuple[float, Load]:
    """Bytes per second of the way that ``--io auto`` takes, of these files' disk, remembered or
    (``anew``) measured; and what other programs did meanwhile. Raises Error where it cannot be."""
    if paths and is_measurable(paths):
        known = known_speeds(paths, anew=anew, seconds=_DISK_S)
    else:
        known = _probed_speeds(anew)
    if known is None:
        raise Error("the disk could not be measured; say how fast it is, for example --disk 2G")
    return known.speeds[best_candidate(known.speeds)], known.load


def _probed_speeds(anew: bool) -> DiskSpeeds | None:
    """By a file made for it, which goes away again; only where nothing is remembered."""
    folder = _NOTES.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not anew and (known := remembered_speeds(folder)):
            return known
        with ending_cleanly(), tempfile.NamedTemporaryFile(dir=folder, prefix="probe-") as probe:
            piece = np.random.default_rng().bytes(_PROBE_BYTES // 16)
            for _ in range(16):
                probe.write(piece)
            probe.flush()
            os.fsync(probe.fileno())
            return known_speeds([Path(probe.name)], anew=anew, seconds=_DISK_S)
    except OSError as error:
        raise Error(
            f"the disk of {folder} could not be measured ({error.strerror}); say how fast the"
            " model's is, for example --disk 2G"
        ) from error
