"""Measurements as they are stored: ``bench/results/NAME.json``, one for each run of a benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from q4run.errors import Error

_NOT_WHAT_IT_WRITES = (
    ArithmeticError,
    AttributeError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)
_Made = TypeVar("_Made")
_NO_MEASUREMENT = 1e100


class Record:
    """One stored measurement: the JSON object ``content`` of the file ``path``.

    Keys with dots lead into objects: ``decode.tok_s``. Raises Error, which names file and key, for
    what is not there or not of its kind.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self.content = content

    @property
    def name(self) -> str:
        return self.path.stem

    def get(self, key: str) -> Any:
        """What stands there; None where nothing does."""
        value: Any = self.content
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def number(self, key: str) -> float:
        value = self.get(key)
        if not _is_number(value):
            raise self._lacks("number", key)
        return float(value)

    def numbers(self, key: str) -> list[float]:
        """A list of at least one, such as a least and a most."""
        values = self.get(key)
        if not isinstance(values, list) or not values or not all(map(_is_number, values)):
            raise self._lacks("list of numbers", key)
        return [float(value) for value in values]

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise self._lacks("text", key)
        return value

    def read_as(self, make: Callable[[dict[str, Any]], _Made]) -> _Made:
        """What ``make`` makes of the content; whatever it stumbles over is the file's fault."""
        try:
            return make(self.content)
        except _NOT_WHAT_IT_WRITES as error:
            raise Error(
                f"{self.path}: not what its benchmark writes ({type(error).__name__}: {error});"
                " measure it again"
            ) from None

    def _lacks(self, kind: str, key: str) -> Error:
        return Error(f"{self.path}: has no {kind} at '{key}'; measure it again")


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _NO_MEASUREMENT  # neither what is no number nor what no float holds


class Results:
    """All that is stored in ``folder``; it notes which files were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, Record] = {}

    @property
    def names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob("*.json"))

    @property
    def unread(self) -> list[str]:
        """What nobody asked for."""
        return [name for name in self.names if name not in self._read]

    def record(self, name: str) -> Record:
        """``NAME.json``; raises Error where it is absent or no JSON object."""
        if name not in self._read:
            self._read[name] = _read(self.folder / f"{name}.json")
        return self._read[name]

    def records(self, prefix: str) -> list[Record]:
        """All whose names begin so; raises Error where there is none."""
        names = [name for name in self.names if name.startswith(prefix)]
        if not names:
            raise _absent(self.folder / f"{prefix}*.json")
        return [self.record(name) for name in names]


def _read(path: Path) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _absent(path) from None
    except (ValueError, RecursionError) as error:
        raise Error(f"{path}: is no JSON ({error}); measure it again") from None
    if not isinstance(content, dict):
        raise Error(f"{path}: holds no JSON object; measure it again")
    return Record(path, content)


def _absent(path: Path) -> Error:
    return Error(
        f"{path}: there is no such measurement; `python -m q4run.bench.pages.report --commands`"
        " tells how the others were made"
    )
