"""q4run: run Mixture-of-Experts language models larger than your RAM, with no compiler."""

from typing import Any

from q4run.errors import BudgetError, Error, FormatError, UnsupportedError

__version__ = "0.1.0"

__all__ = ["BudgetError", "Error", "FormatError", "Model", "UnsupportedError", "load"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: numba takes most of a second, which ``q4run --help`` need not wait for.
    if name in ("load", "Model"):
        from q4run import model

        return getattr(model, name)
    raise AttributeError(f"module 'q4run' has no attribute '{name}'")
