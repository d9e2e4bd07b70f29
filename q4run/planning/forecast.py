"""How fast a model will be: the work of a token, divided by what the machine gives.

Decoding computes and waits in turn: the router says which experts a token wants, those that are not
in RAM are waited for, and only the shared expert is computed meanwhile. So the times add up, less
that part. A prompt's reads run ahead of it: the longer of the two times counts.

Which experts a token wants is taken to be even, as with random weights and nearly so in the traces
of trained models (docs/experiments.md, "Which expert leaves"): then the hit rate is the share of
the experts that are in RAM, and a trained model does a little better.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from q4run.budget import MemoryPlan
from q4run.planning.fill_speed import Filling
from q4run.planning.machine_speed import MachineSpeed
from q4run.planning.work import Work

DEFAULT_PROMPT = 512  # tokens
# Python, the router, norms, and regions too short for more than one thread: seconds a layer.
# Measured with 12 layers: 0.8 ms of a token (docs/experiments.md).
LAYER_S = 70e-6
# Products of a layer that wait for one another: attention's in- and outputs, gate and up, and down.
_REGIONS = 4
# Threads that read, where there are cores for them.
_MOST_READERS = 8


class Limit(StrEnum):
    """What a speed is held back by most."""

    MEMORY = "memory"
    DISK = "disk"
    CORES = "cores"


@dataclass(frozen=True)
class Speed:
    """Tokens per second; ``read_bytes`` from disk (or its copy in the page cache), of a token in
    decoding and of all of a prompt."""

    tok_s: float
    limit: Limit
    read_bytes: int


@dataclass(frozen=True)
class Forecast:
    """``cold`` is as it begins: a first prompt, with no expert in RAM and nothing in the page
    cache, and the tokens that are decoded after it.

    hit_rate: the share of a token's experts that are found in RAM; cached: whether the page cache
    holds the whole file, once it was read, so that no disk is waited for.
    """

    hit_rate: float
    cold_hit_rate: float
    cached: bool
    decode: Speed
    cold_decode: Speed
    long_decode: Speed  # at the end of the context
    prompt: Speed
    cold_prompt: Speed
    n_prompt: int


def forecast(
    work: Work,
    plan: MemoryPlan,
    machine: MachineSpeed,
    *,
    free_bytes: int,
    context: int,
    n_prompt: int = DEFAULT_PROMPT,
) -> Forecast:
    """free_bytes: of memory beside the plan, for the page cache."""
    n_prompt = min(n_prompt, context)
    hit_rate = plan.n_slots / plan.n_experts if plan.n_experts else 1.0
    cached = not plan.all_resident and work.file_bytes <= free_bytes
    seen = _share_wanted(work, n_prompt)
    cold_hit_rate = min(hit_rate, seen)
    from_cache = float(cached)
    cold_from_cache = cached * (seen - cold_hit_rate) / max(1 - cold_hit_rate, 1e-9)
    return Forecast(
        hit_rate=hit_rate,
        cold_hit_rate=cold_hit_rate,
        cached=cached,
        decode=_decode(work, machine, hit_rate, from_cache, n_prompt),
        cold_decode=_decode(work, machine, cold_hit_rate, cold_from_cache, n_prompt),
        long_decode=_decode(work, machine, hit_rate, from_cache, context),
        prompt=_prompt(work, plan, machine, n_prompt, cached=cached),
        cold_prompt=_prompt(work, plan, machine, n_prompt, cold=True),
        n_prompt=n_prompt,
    )


def _decode(
    work: Work, machine: MachineSpeed, hit_rate: float, from_cache: float, length: int
) -> Speed:
    """One token behind ``length`` others. from_cache: the share of what is not found in RAM that
    the page cache has; the disk has the others."""
    seconds = defaultdict[Limit, float](float)
    by_type = Counter(work.dense)
    for layer in work.experts:
        by_type.update({name: layer.n_used * n for name, n in layer.ram_bytes.items()})
    for name, n_bytes in by_type.items():
        seconds[_held_by(name, machine)] += n_bytes / machine.kernel(name).memory
    seconds[Limit.MEMORY] += work.kv_bytes(length) / machine.attention.decode
    main = machine.kernel(max(by_type, key=lambda name: by_type[name]))
    layer_s = LAYER_S + _REGIONS * main.region_s
    seconds[Limit.CORES] += layer_s * len(work.config.layers)
    read = 0.0
    for layer in work.experts:
        n_missed = layer.n_used * (1 - hit_rate)
        if not n_missed:
            continue
        read += n_missed * layer.file_bytes
        filling = _filling(layer.ram_bytes, machine)
        seconds[Limit.CORES] += n_missed * filling.fill_s
        seconds[Limit.CORES] += from_cache * n_missed * layer.file_bytes / filling.fill
        if from_cache == 1:
            continue
        limit = Limit.DISK if machine.disk < filling.fill else Limit.CORES
        reading = layer.file_bytes / min(filling.fill, machine.disk)
        seconds[limit] += (1 - from_cache) * n_missed * reading
        # A disk leaves the cores to what is computed meanwhile.
        meanwhile = sum(n / machine.kernel(name).memory for name, n in layer.meanwhile.items())
        waited = (1 - from_cache) * min(1.0, n_missed)
        seconds[Limit.MEMORY] -= waited * min(meanwhile, reading)
    return Speed(1 / sum(seconds.values()), _longest(seconds), round(read))


def _held_by(name: str, machine: MachineSpeed) -> Limit:
    """What holds back a decoded token's products of a type."""
    cores = machine.threads * machine.kernel(name).core
    return Limit.CORES if cores < machine.memory else Limit.MEMORY


def _filling(types: Iterable[str], machine: MachineSpeed) -> Filling:
    """Of experts of these types, by all cores that fill slots together."""
    kernels = [machine.kernel(name) for name in types]
    n_cores = min(machine.threads, _MOST_READERS)
    return Filling(
        fill=n_cores * min(k.fill for k in kernels),
        fill_s=max(k.fill_s for k in kernels),
        first_fill=n_cores * min(k.first_fill for k in kernels),
    )


def _prompt(
    work: Work,
    plan: MemoryPlan,
    machine: MachineSpeed,
    n_tokens: int,
    *,
    cold: bool = False,
    cached: bool = False,
) -> Speed:
    """A prompt in its batches, each of which wants every layer's experts once.

    cold: the first batch finds nothing in RAM; any other what slots hold.
    """
    n_batch = plan.batch_for(n_tokens)
    held = plan.n_slots / plan.n_experts if plan.n_experts else 1.0
    seconds = defaultdict[Limit, float](float)
    read = 0.0
    done = 0
    while done < n_tokens:
        n = min(n_batch, n_tokens - done)
        is_first = cold and not done
        wanted = _file_bytes_wanted(work, n) * (1 - (0.0 if is_first else held))
        batch = _batch_seconds(work, machine, done, n)
        if wanted:
            batch[Limit.CORES] += _filling_seconds(work, plan, machine, wanted, is_first)
            if not cached and wanted / machine.disk > sum(batch.values()):
                batch = defaultdict(float, {Limit.DISK: wanted / machine.disk})
        for limit, some in batch.items():
            seconds[limit] += some
        read += wanted
        done += n
    return Speed(n_tokens / sum(seconds.values()), _longest(seconds), round(read))


def _filling_seconds(
    work: Work, plan: MemoryPlan, machine: MachineSpeed, n_bytes: float, is_first: bool
) -> float:
    """What so many bytes on their way into slots take from the computation; the first into each
    slot are slower."""
    filling = _filling(work.experts[0].ram_bytes, machine)
    n_first = min(n_bytes, plan.slots) if is_first else 0.0
    return n_first / filling.first_fill + (n_bytes - n_first) / filling.fill


def _batch_seconds(
    work: Work, machine: MachineSpeed, done: int, n_tokens: int
) -> defaultdict[Limit, float]:
    """Of ``n_tokens`` behind ``done`` others. Each matrix takes as long as its operations, or its
    bytes where few tokens share it."""
    seconds = defaultdict[Limit, float](float)

    def add(name: str, n_bytes: float, n_weights: float, tokens: float) -> None:
        speed = machine.kernel(name)
        computing = n_weights * (2 * tokens / speed.prompt + speed.unpack_s) / machine.threads
        reading = n_bytes / speed.memory
        seconds[Limit.CORES if computing > reading else Limit.MEMORY] += max(computing, reading)

    for name, n_weights in work.prompt_weights.items():
        share = n_weights / max(1, sum(work.prompt_weights.values()))
        add(name, share * sum(work.dense.values()), n_weights, n_tokens)
    for layer in work.experts:
        touched = _touched(layer.n_expert, n_tokens * layer.n_used)
        for name, n_weights in layer.n_weights.items():
            tokens = n_tokens * layer.n_used / touched
            add(name, touched * layer.ram_bytes[name], touched * n_weights, tokens)
    attention = work.attention_operations(done + n_tokens) - work.attention_operations(done)
    seconds[Limit.CORES] += attention / (machine.attention.prompt * machine.threads)
    seconds[Limit.CORES] += LAYER_S * len(work.config.layers)
    return seconds


def _touched(n_expert: int, n_choices: int) -> float:
    """How many different experts even choices come to, on average."""
    return n_expert * (1 - (1 - 1 / n_expert) ** n_choices)


def _share_wanted(work: Work, n_tokens: int) -> float:
    """Of all experts, those that so many tokens want at least once; 1 where there are none."""
    n_experts = sum(layer.n_expert for layer in work.experts)
    wanted = sum(_touched(layer.n_expert, n_tokens * layer.n_used) for layer in work.experts)
    return wanted / n_experts if n_experts else 1.0


def _file_bytes_wanted(work: Work, n_tokens: int) -> float:
    return sum(
        _touched(layer.n_expert, n_tokens * layer.n_used) * layer.file_bytes
        for layer in work.experts
    )


def _longest(seconds: Mapping[Limit, float]) -> Limit:
    return max(seconds, key=lambda limit: seconds[limit])
