"""Option groups: one parameter of a verb that stands for several options.

A dataclass whose fields are annotated with typer's options is a group as it is. For a value that is
made elsewhere, the annotation is ``Annotated[Value, Group(...)]``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum, StrEnum
from typing import Annotated, Any, get_args, get_type_hints

Options = list[inspect.Parameter]


@dataclass(frozen=True)
class Group:
    """The options that make one value.

    make: takes the options' values by their names. declare: returns the options as parameters (see
    ``option``); called for every parse, so that choices are those of that moment.
    """

    make: Callable[..., Any]
    declare: Callable[[], Options]


def option(name: str, kind: Any, default: Any, how: Any) -> inspect.Parameter:
    """Returns an option of a group, as the parameter of a function; how: typer's ``Option``."""
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[kind, how], default=default
    )


def choice(names: Iterable[str]) -> type[Enum]:
    """Returns the type of an option that takes one of ``names``."""
    return StrEnum("Choice", {name: name for name in names})


def flatten(verb: Callable[..., None]) -> Callable[..., None]:
    """Returns ``verb`` as typer takes it: with every option a parameter, in place of the groups."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Group, list[str]]] = {}
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        group = _find_group(parameter.annotation)
        if group is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        else:
            options = group.declare()
            groups[parameter.name] = group, [option.name for option in options]
            parameters += options

    @functools.wraps(verb)
    def flat(**given: Any) -> None:
        values = {
            name: value.value if isinstance(value, Enum) else value for name, value in given.items()
        }
        made = {
            name: group.make(**{option: values.pop(option) for option in options})
            for name, (group, options) in groups.items()
        }
        verb(**values, **made)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _find_group(annotation: Any) -> Group | None:
    if isinstance(annotation, type) and is_dataclass(annotation):
        return Group(annotation, functools.partial(_declared, annotation))
    return next((one for one in get_args(annotation) if isinstance(one, Group)), None)


def _declared(group: type[Any]) -> Options:
    annotations = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=annotations[field.name],
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(group)
    ]
