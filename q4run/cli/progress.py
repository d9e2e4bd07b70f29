"""A bar for work whose end can be foreseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from q4run.terminal import stderr_console

# Called with what is being done now, and how much of it is done, of how much in all.
Update = Callable[[str, int | None, int | None], None]


@contextmanager
def progress_bar(what: str, *columns: ProgressColumn, shown: bool = True) -> Iterator[Update]:
    """A bar with the time left on standard error, in a terminal; gone when it ends.

    ``what`` is done first, of unknown length; ``columns`` stand before the time left.
    """
    console = stderr_console()
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    ) as progress:
        task = progress.add_task(what, total=None)

        def update(what: str, done: int | None, total: int | None) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield update
