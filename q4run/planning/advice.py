"""Several budgets beside each other, and the one to take."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from q4run.budget import (
    DEFAULT_CONTEXT,
    INTERPRETER_ALLOWANCE,
    USUAL_INTERPRETER,
    MemoryPlan,
    default_budget,
    least_budget,
    plan_memory,
)
from q4run.errors import BudgetError
from q4run.experts.layout import ExpertLayout, read_layout
from q4run.gguf_file import GGUFFile, TensorInfo
from q4run.machine.memory import available_memory, total_memory
from q4run.models import read_config
from q4run.models.config import ModelConfig
from q4run.planning.forecast import DEFAULT_PROMPT, Forecast, forecast
from q4run.planning.machine_speed import Given, MachineSpeed, Progress, find_speeds
from q4run.planning.work import Work, count_work
from q4run.sizes import format_size
from q4run.weights import format_of

# A machine that one does not have: what its system and other programs take.
_SYSTEM_SHARE, _SYSTEM_LEAST = 1 / 8, 2 * 10**9
_ROUND_BUDGETS = [
    n * 10**9 for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
]
_MOST_ROWS = 7
# So much slower is as good, for less memory.
_AS_GOOD = 0.97


@dataclass(frozen=True)
class Ram:
    """What a machine has, and what of it is free; bytes."""

    total: int
    free: int


def ram_of(total: int | None) -> Ram:
    """This machine's, or one's of so many bytes of which the system takes an eighth, 2 GB at
    least."""
    if total is None:
        return Ram(total_memory(), available_memory())
    return Ram(total, max(0, total - max(_SYSTEM_LEAST, int(_SYSTEM_SHARE * total))))


@dataclass(frozen=True)
class Row:
    """What comes of a budget."""

    memory: MemoryPlan
    forecast: Forecast

    @property
    def budget(self) -> int:
        return self.memory.budget

    @property
    def expected_peak(self) -> int:
        """Bytes of all that the process will hold in RAM, as a rule."""
        return self.memory.total + USUAL_INTERPRETER


def make_planner(
    file: GGUFFile,
    given: Given,
    *,
    paths: Sequence[Path],
    context: int | None,
    kv_type: str,
    config: ModelConfig | None = None,
    anew: bool = False,
    progress: Progress | None = None,
) -> "Planner":
    """Reads the model's shape, finds the machine's speeds, and puts them together.

    paths: of the model's files on disk, none where it is no file yet; context: None as in `load`;
    config: what the model is where no family reads it from the file.
    Raises what `read_config`, `read_layout` and `find_speeds` raise.
    """
    config = config or read_config(file)
    layout = read_layout(file, config)
    context = context or min(DEFAULT_CONTEXT, config.context_length)
    work = count_work(file, config, layout, kv_type)
    formats = [format_of(_of_type(file, name)) for name in work.main_types()]
    machine = find_speeds(config, kv_type, formats, paths, given, anew=anew, progress=progress)
    ram = ram_of(given.ram)
    return Planner(file, config, layout, machine, ram, work=work, context=context)


def _of_type(file: GGUFFile, name: str) -> TensorInfo:
    return next(t for t in file.tensors.values() if t.type.name.lower() == name)


class Planner:
    """Plans one model on one machine, for any budget."""

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        layout: ExpertLayout,
        machine: MachineSpeed,
        ram: Ram,
        *,
        work: Work,
        context: int,
        n_prompt: int = DEFAULT_PROMPT,
    ) -> None:
        self.file, self.work, self.machine, self.ram = file, work, machine, ram
        self.context, self.n_prompt = context, n_prompt
        self._config, self._layout = config, layout
        self.least = least_budget(file, config, layout, context=context, kv_type=work.kv_type)
        # What the model takes where nothing is streamed.
        self.whole = self._memory(1 << 62, 1 << 62).total

    def row(self, budget: int) -> Row:
        """Raises BudgetError for a budget that the model or the machine cannot do with."""
        if budget > self.ram.total:
            raise BudgetError(
                f"a budget of {format_size(budget)} is more than the {format_size(self.ram.total)}"
                " of RAM there are; lower --ram-budget, or plan for another machine with --ram"
            )
        memory = self._memory(budget, self.ram.total)
        free = self.ram.free - memory.total - INTERPRETER_ALLOWANCE
        return Row(
            memory,
            forecast(
                self.work,
                memory,
                self.machine,
                free_bytes=free,
                context=self.context,
                n_prompt=self.n_prompt,
            ),
        )

    def _memory(self, budget: int, total_ram: int) -> MemoryPlan:
        return plan_memory(
            self.file,
            self._config,
            self._layout,
            ram_budget=budget,
            context=self.context,
            kv_type=self.work.kv_type,
            total_ram=total_ram,
        )

    def rows(self, *others: int) -> list[Row]:
        """Round budgets from the least that works to all that the model or the machine can use,
        and ``others``; ascending. Raises BudgetError where none works."""
        most = self.ram.total - INTERPRETER_ALLOWANCE
        between = [n for n in _ROUND_BUDGETS if self.least <= n < min(self.whole, most)]
        budgets = {_rounded_up(self.least), *_spread(between, _MOST_ROWS - 3)}
        budgets |= {_rounded_up(self.whole), *others}
        if self.least < (usual := _rounded_down(default_budget(self.ram.free))) < self.whole:
            budgets.add(usual)
        fitting = []
        for budget in sorted(budgets):
            with suppress(BudgetError):
                fitting.append(self.row(budget))
        if not fitting:
            raise BudgetError(
                f"{self.file.path.name} does not fit into the {format_size(self.ram.total)} of RAM"
                f" there are: it needs at least {format_size(_rounded_up(self.least))}; plan for"
                " a larger machine with --ram, or take a smaller type or --context"
            )
        return fitting

    def best(self, rows: Sequence[Row]) -> Row:
        """The least budget that is about as fast as any within what is taken of free memory: in
        decoding and then, of those, in prompts.

        Where none is within that, the first of the rows.
        """
        most = default_budget(self.ram.free)
        allowed = [row for row in rows if row.budget <= most] or list(rows[:1])
        for speed_of in (_decode_speed, _prompt_speed):
            fastest = max(map(speed_of, allowed))
            allowed = [row for row in allowed if speed_of(row) >= _AS_GOOD * fastest]
        return min(allowed, key=lambda row: row.budget)


def _decode_speed(row: Row) -> float:
    return row.forecast.decode.tok_s


def _prompt_speed(row: Row) -> float:
    return row.forecast.prompt.tok_s


def _rounded_up(n_bytes: int) -> int:
    """To two digits that are not below, or to whole GB from 10 on."""
    return -(-n_bytes // _unit(n_bytes)) * _unit(n_bytes)


def _rounded_down(n_bytes: int) -> int:
    return n_bytes // _unit(n_bytes) * _unit(n_bytes)


def _unit(n_bytes: int) -> int:
    return int(10 ** max(6, min(9, len(str(n_bytes)) - 2)))


def _spread(budgets: list[int], n: int) -> list[int]:
    """At most ``n`` of them, the last among them, evenly apart."""
    if len(budgets) <= n:
        return budgets
    step = (len(budgets) - 1) / (n - 1)
    return [budgets[round(i * step)] for i in range(n)]
