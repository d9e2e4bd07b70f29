"""q4run: run Mixture-of-Experts language models larger than your RAM, with no compiler."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from q4run.errors import BudgetError, Error, FormatError, UnsupportedError

if TYPE_CHECKING:
    from q4run.generation.completion import Completion, Finish
    from q4run.generation.conversation import Conversation
    from q4run.generation.sampler import Sampler, SamplingParameters
    from q4run.generation.stats import Stats
    from q4run.loading import load
    from q4run.model import Model

__version__ = "0.1.0"

__all__ = [
    "BudgetError",
    "Completion",
    "Conversation",
    "Error",
    "Finish",
    "FormatError",
    "Model",
    "Sampler",
    "SamplingParameters",
    "Stats",
    "UnsupportedError",
    "load",
]

# Loaded on first use: numba takes most of a second, which ``q4run --help`` need not wait for.
_LOADED_LATER = {
    "Completion": "q4run.generation.completion",
    "Conversation": "q4run.generation.conversation",
    "Finish": "q4run.generation.completion",
    "Model": "q4run.model",
    "Sampler": "q4run.generation.sampler",
    "SamplingParameters": "q4run.generation.sampler",
    "Stats": "q4run.generation.stats",
    "load": "q4run.loading",
}


def __getattr__(name: str) -> Any:
    if name in _LOADED_LATER:
        return getattr(import_module(_LOADED_LATER[name]), name)
    raise AttributeError(f"module 'q4run' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
