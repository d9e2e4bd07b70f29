"""The kinds of keys and values: a file each, found by its name; listing names imports no numba."""

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from q4run.kernels.attention.kinds.base import KVKind


def kind_names() -> list[str]:
    """Returns the names of all kinds: every file of this folder but ``base`` holds a ``KIND``."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")


def find_kind(name: str) -> "KVKind":
    """Returns the kind of that name; raises KeyError where there is none."""
    if name not in kind_names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name}").KIND
