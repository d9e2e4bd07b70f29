"""The jinja2 environment of chat templates: what ``transformers`` offers them, safely.

jinja2's sandbox keeps a template away from Python's insides. On top of that, what could fill the
memory or never end is counted (``template_work``), and what cannot be counted and no chat template
needs is not there: ``**``, methods and filters that pad, repeat or encode.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from types import MethodType
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from markupsafe import Markup

from q4run.text.template_means import GLOBALS, bounded_indent, to_json
from q4run.text.template_work import GrowingList, Metering, Work

_STR_METHODS = """
capitalize casefold count endswith find format format_map index isalnum isalpha isascii isdecimal
isdigit islower isnumeric isspace istitle isupper join lower lstrip partition removeprefix
removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip
swapcase title upper
"""
_LIST_METHODS = frozenset({"copy", "count", "index"})
_CHANGES = frozenset({"append", "clear", "extend", "insert", "pop", "remove", "reverse"})
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STR_METHODS.split()),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    GrowingList: _LIST_METHODS | _CHANGES,
    list: _LIST_METHODS,
    tuple: frozenset({"count", "index"}),
    int: frozenset(),
    float: frozenset(),
    bytes: frozenset(),
}
# Filters whose result is about as large as what they are given, and no larger.
_LIST_FILTERS = """
abs count d default dictsort first float int items last length list map max min reject rejectattr
reverse select selectattr sort unique
"""
_TEXT_FILTERS = "capitalize e escape lower safe string title trim truncate upper"
# What jinja2 adds to the arguments of every call inside a loop and inside a block.
_SCOPES = ("_loop_vars", "_block_vars")
# The longest that one character becomes when Markup escapes it: &#34; for a quotation mark.
_LONGEST_ESCAPE = 5
_WIDE_FIELD = re.compile(r"\d{4}|\*")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders a chat template; set ``work`` before either. Not thread-safe."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.do", "jinja2.ext.loopcontrols"],
            finalize=self._written,
        )
        self.work = Work()
        del self.globals["lipsum"]
        self.globals.update(GLOBALS)
        own: dict[str, Callable[..., Any]] = {
            "from_json": json.loads,
            "format": lambda value, *args, **kwargs: self._percent(value, kwargs or args),
            "indent": bounded_indent(self.filters["indent"]),
            "join": self._join_filter,
            "replace": self._replace,
            "tojson": to_json,
        }
        lists = {name: self._counted(self.filters[name]) for name in _LIST_FILTERS.split()}
        texts = {name: self.filters[name] for name in _TEXT_FILTERS.split()} | own
        self.filters = lists | {
            name: self._counted(function, as_text=name != "join")
            for name, function in texts.items()
        }

    def compile_counted(self, source: str) -> Template:
        """The template of this source, in which all work is counted."""
        tree = self.parse(source)
        Metering().visit(tree)
        return self.from_string(tree)

    # What a compiled template calls wherever the language itself does work: see Metering.

    def tick(self) -> None:
        self.work.step()

    def rounds(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            self.work.step()
            yield item

    def joined(self, *parts: Any) -> str:
        return self._join("", parts)

    def sized(self, value: Any) -> Any:
        self.work.charge(self.work.size_of(value, fix=True))
        return value

    def listed(self, value: list[Any]) -> GrowingList:
        return GrowingList(self.sized(value))

    def concat(self, parts: Iterable[str]) -> str:
        return self._join("", parts)

    # What jinja2 asks its environment about.

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.work.step()
        if operator == "**":
            raise SecurityError("the operator ** is not available")
        if operator == "%" and isinstance(left, str):
            return self._percent(left, right)
        if operator == "+" and isinstance(left, str | list | tuple):
            self.work.charge(self.work.size_of([left, right]))
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    self.work.charge(self.work.size_of(value) * max(times, 0))
            if isinstance(left, int) and isinstance(right, int):
                self.work.charge(left.bit_length() + right.bit_length())
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(__obj, MethodType) and __obj.__self__ is __self:
            return __obj(*args)
        __self.work.step()
        for scope in _SCOPES:
            kwargs.pop(scope, None)
        __self.work.charge(__self.work.size_of([args, kwargs]))
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, GrowingList) and owner.fixed and __obj.__name__ in _CHANGES:
            raise SecurityError(f"{__obj.__name__!r} of a list inside another is not available")
        if isinstance(owner, str):
            if __obj.__name__ == "join":
                args = tuple(map(list, args))
            __self._charge_method(owner, __obj.__name__, args)
        result = super().call(__context, __obj, *args, **kwargs)
        if isinstance(owner, GrowingList):
            __self.sized(owner)
        return __self.sized(result)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__} is out of bounds")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        template, by_mapping = value.__self__, value.__name__ == "format_map"

        def checked(*args: Any, **kwargs: Any) -> str:
            if by_mapping:
                args, kwargs = (), dict(*args)
            size = self.work.size_of([template, args, kwargs], as_text=True)
            self.work.charge(len(template) + template.count("{") * size)
            return _Formatter(self).vformat(template, args, kwargs)

        return checked

    # Where values are made from others.

    def _written(self, value: Any) -> Any:
        """Checks what stands between ``{{ }}`` before it becomes text."""
        if not isinstance(value, str):
            self.work.charge(self.work.size_of(value, as_text=True))
        return value

    def _counted(self, function: Callable[..., Any], as_text: bool = False) -> Callable[..., Any]:
        """A filter that counts as a step and charges its result, and its arguments as texts."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.work.step()
            if as_text:
                self.work.charge(self.work.size_of([args[first:], kwargs], as_text=True))
            return self.sized(function(*args, **kwargs))

        return counted

    def _join(self, separator: str, values: Iterable[Any]) -> str:
        parts = list(values)
        self._charge_join(1, separator, parts)
        return separator.join(map(str, parts))

    def _join_filter(
        self, values: Iterable[Any], d: str = "", attribute: str | int | None = None
    ) -> str:
        if attribute is not None:
            values = map(make_attrgetter(self, attribute), values)
        return self._join(str(d), values)

    def _replace(self, s: Any, old: Any, new: Any, count: int | None = None) -> str:
        given = str(old), str(new), -1 if count is None else count
        self._charge_replace(1, str(s), *given)
        return str(s).replace(*given)

    def _charge_method(self, text: str, method: str, args: tuple[Any, ...]) -> None:
        """Charges what a method of a text may make that is longer than text and arguments."""
        longest = _LONGEST_ESCAPE if isinstance(text, Markup) else 1
        if method == "join" and args:
            self._charge_join(longest, text, args[0])
        elif method == "replace" and all(isinstance(arg, str) for arg in args[:2]):
            self._charge_replace(longest, text, *args[:3])

    def _charge_join(self, longest: int, separator: str, parts: list[Any]) -> None:
        size = self.work.size_of(parts, as_text=True)
        self.work.charge(longest * size + len(separator) * len(parts))

    def _charge_replace(self, longest: int, text: str, old: str, new: str, count: int = -1) -> None:
        found = text.count(old) if count < 0 else min(count, text.count(old))
        self.work.charge(len(text) + longest * found * len(new))

    def _percent(self, template: Any, values: Any) -> str:
        text = str(template)
        if _WIDE_FIELD.search(text, text.find("%") + 1):
            raise SecurityError("a format with such wide fields is not available")
        size = self.work.size_of([text, values], as_text=True)
        self.work.charge(len(text) + text.count("%") * (size + 1000))
        return str(text % values)


class _Formatter(SandboxedFormatter):
    """``str.format`` with fields of sane width."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if _WIDE_FIELD.search(format_spec):
            raise SecurityError("a format with such wide fields is not available")
        return str(super().format_field(value, format_spec))


class _Generation(Extension):
    """``{% generation %}``: marks what to train on; for rendering it only encloses."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
