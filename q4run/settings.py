"""How a model is run: what a person may set, each setting checked as it is made."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from q4run.disk.methods import AUTO, METHODS
from q4run.errors import Error
from q4run.experts.policies import DEFAULT_CACHE, POLICIES
from q4run.experts.prefetch import DEFAULT_PREFETCH, PREFETCH
from q4run.kernels.attention.kinds import kind_names
from q4run.machine.memory import total_memory
from q4run.sizes import parse_size
from q4run.text.pre_tokenizers import check_name


def io_names() -> list[str]:
    """Returns what ``io`` may be: ``auto`` and the names of the I/O methods."""
    return [AUTO, *METHODS]


@dataclass(frozen=True)
class Settings:
    """How a model is run. Raises ``Error`` for a value that no model can be run with.

    ram_budget: bytes, or ``"6GiB"``, ``"500M"``, or ``"50%"`` of this machine's RAM; None takes a
    share of what is free. It bounds all that the process holds beyond the fixed allowance for the
    interpreter (``q4run.budget.INTERPRETER_ALLOWANCE``). threads: None is one per physical core
    (``q4run.machine.cores.choose_threads``, which checks the number). io: how experts are read, see
    ``io_names``. context: tokens; None is 4096, or what the model was trained on where that is
    less. kv_type: one of ``kind_names``. cache: which expert leaves when a slot is wanted, one of
    ``POLICIES``. prefetch: whether experts are read because the next layer will likely want them:
    ``always``, ``never``, or ``auto``, which finds out what is faster. trace: a file that gets
    which experts each layer used. pre: how text is cut into words, one of ``PRE_TOKENIZERS``; None
    follows the file.
    """

    ram_budget: str | int | None = None
    threads: int | None = None
    io: str = AUTO
    context: int | None = None
    kv_type: str = "f16"
    cache: str = DEFAULT_CACHE
    prefetch: str = DEFAULT_PREFETCH
    trace: str | os.PathLike[str] | None = None
    pre: str | None = None

    def __post_init__(self) -> None:
        _check("KV type", self.kv_type, kind_names())
        _check("cache policy", self.cache, POLICIES)
        _check("prefetch", self.prefetch, PREFETCH)
        if self.pre is not None:
            check_name(self.pre)
        _check("I/O method", self.io, io_names(), between=", ")
        if self.context is not None and self.context < 1:
            raise Error(f"a context of {self.context} tokens holds nothing: give at least 1")
        if isinstance(self.ram_budget, str):
            parse_size(self.ram_budget, total_memory())
        elif self.ram_budget is not None and self.ram_budget <= 0:
            raise Error(f"a RAM budget of {self.ram_budget} bytes is nothing: give at least 1M")

    @property
    def budget_bytes(self) -> int | None:
        """``ram_budget`` in bytes; None where none is set."""
        if isinstance(self.ram_budget, str):
            return parse_size(self.ram_budget, total_memory())
        return self.ram_budget


def _check(what: str, name: str, names: Iterable[str], *, between: str = " or ") -> None:
    if name not in names:
        raise Error(f"there is no {what} '{name}'; choose {between.join(names)}")
