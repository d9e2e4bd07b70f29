"""The names and filters that ``transformers`` gives chat templates and jinja2 does not."""

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

_MAX_INDENT = 16


class RefusedError(TemplateError):
    """The template called ``raise_exception``."""


def to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as ``transformers`` writes it: no escapes for HTML, letters as they are.

    Raises SecurityError for a very wide indent.
    """
    _check_indent(indent)
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def bounded_indent(standard: Callable[..., str]) -> Callable[..., str]:
    """Return jinja2's filter ``indent``, which raises SecurityError for a very wide indent."""

    @wraps(standard)
    def indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        _check_indent(width)
        return standard(s, width, first, blank)

    return indent


def _check_indent(width: int | str | None) -> None:
    if isinstance(width, str):
        width = len(width)
    if width is not None and width > _MAX_INDENT:
        raise SecurityError(f"an indent of {width} is not available")


def _raise_exception(message: Any) -> NoReturn:
    raise RefusedError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class _Dict:
    """``dict`` without its methods that change a mapping."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """``namespace`` without names such as ``__html__``, which Python or jinja2 would call."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # any name is free for kwargs, self too
        self, *rest = args
        values = dict(*rest, **kwargs)
        Namespace.__init__(self)
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"the name {name!r} is not available in a namespace")
        super().__setitem__(name, value)


GLOBALS: dict[str, Any] = {
    "dict": _Dict(),
    "namespace": _Namespace,
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
}
