"""What a chat template from a stranger may cost: steps, time and sizes, and how they are counted.

Every statement, loop round and call is a step; every text or list is charged by its size before it
is made, or right after where it cannot be larger than what it is made from. Lists count their parts
as often as they appear, so that a list of a list of ... twice itself does not look small.
"""

import time
from typing import Any

from jinja2 import TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

MAX_STEPS = 2_000_000
MAX_SECONDS = 10.0
# The largest value is this and four times the input; all values together forty times the largest.
MAX_SIZE = 2_000_000
TOTAL_SIZES = 40


class WorkExceededError(TemplateError):
    """The template asks for more time or memory than any conversation needs."""


class GrowingList(list[Any]):
    """A list that a template has made and may add to, as long as it is part of nothing else.

    What contains it was charged by the size it had then, and would grow unseen.
    """

    fixed = False


class Work:
    """What one rendering may still do, given the size of its input in characters.

    share: how much of it, for a rendering that is to be cheap.
    """

    def __init__(self, input_size: int = 0, share: float = 1.0) -> None:
        self._largest = MAX_SIZE + 4 * input_size
        self._left = int(share * TOTAL_SIZES * self._largest)
        self._steps = int(share * MAX_STEPS)
        self._deadline = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        """One more step; ``WorkExceededError`` when that was one too many, or the time is up."""
        self._steps -= 1
        if self._steps < 0 or time.monotonic() > self._deadline:
            raise WorkExceededError("it does not come to an end")

    def charge(self, size: int) -> None:
        """One more value of this size; ``WorkExceededError`` if it or all of them are too much."""
        self._left -= size
        if size > self._largest or self._left < 0:
            raise WorkExceededError("it makes texts or lists without end")

    def size_of(self, value: Any, *, as_text: bool = False, fix: bool = False) -> int:
        """Characters and elements in ``value``, with all that it contains.

        ``fix``: the value is new; the lists in it are to grow no more.
        ``as_text``: the value is about to be written out; what is neither text, number, list nor
        mapping would show its insides, and is a ``SecurityError``.
        """
        size, waiting = 0, [value]
        while waiting:
            item = waiting.pop()
            parts: list[Any] = []
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, dict):
                parts = [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                parts = list(item)
            elif as_text and not isinstance(item, int | float | Undefined | None):
                raise SecurityError(f"a {type(item).__name__} cannot be written out")
            if fix and isinstance(item, GrowingList) and item is not value:
                item.fixed = True
            size += 1 + len(parts)
            if size > self._largest:
                raise WorkExceededError("it makes texts or lists without end")
            waiting += parts
        return size


class Metering(NodeTransformer):
    """Makes a parsed template call its environment wherever the language itself does work.

    A ``tick()`` before every statement, ``rounds(iterable)`` around what a loop runs over,
    ``joined(*parts)`` for the ``~`` operator, ``listed(value)`` around lists, and
    ``sized(value)`` around tuples and mappings.
    """

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        super().generic_visit(node, *args, **kwargs)
        for field in ("body", "else_"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                ticks = [nodes.ExprStmt(_call("tick", [], node)) for _ in statements]
                pairs = zip(ticks, statements, strict=True)
                setattr(node, field, [statement for pair in pairs for statement in pair])
        return node

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _call("rounds", [node.iter], node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node.nodes, node)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call("listed", [node], node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("sized", [node], node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _call("sized", [node], node) if node.ctx == "load" else node


def _call(name: str, args: list[Any], place: nodes.Node) -> nodes.Call:
    """A call of the environment's own method ``name``, for the line of ``place``."""
    call = nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)
    call.set_lineno(place.lineno)
    return call
