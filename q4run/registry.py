"""What is chosen by a name, a file each: found by listing a folder, imported when it is used."""

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

Kind = TypeVar("Kind")


class Registry(Mapping[str, Kind]):
    """Maps the names of the files in a package's folder to what each has under one attribute.

    Names ascend. Listing them imports nothing; a file is imported when its value is asked for.
    """

    def __init__(self, package: str, attribute: str) -> None:
        """package: the full name of the package, as its ``__name__`` says; attribute: of a file."""
        self._package = package
        self._attribute = attribute

    def __iter__(self) -> Iterator[str]:
        path = sys.modules[self._package].__path__
        return iter(sorted(module.name for module in pkgutil.iter_modules(path)))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in iter(self)

    def __getitem__(self, name: str) -> Kind:
        if name not in self:
            raise KeyError(name)
        module: Any = importlib.import_module(f"{self._package}.{name}")
        return getattr(module, self._attribute)
