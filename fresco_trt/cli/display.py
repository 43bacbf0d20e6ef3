"""How the command line speaks: results on standard output, progress and warnings on the other.

All text for people goes through here, and none of it can move a cursor or turn the order of
letters: names and messages may come from a stranger's bundle.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fresco_trt.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.progress import Progress, TaskID

    from fresco_trt.run.sampler import Step

    Report = Callable[[str, float], None]


def _out() -> Console:
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def _err() -> Console:
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Lines as they are; whatever else cannot be printed is ``?``."""
    lines = text.split("\n")
    return escape("\n".join(each if each.isprintable() else one_line(each) for each in lines))


def _tell(text: str) -> None:
    """Print on standard error; where nobody can read it, the exit code is what is left."""
    with suppress(OSError):
        _err().print(text)


def say(text: str) -> None:
    """Print lines on standard output."""
    _out().print(_plain(text))


def error(message: str) -> None:
    """Print an error on standard error."""
    _tell(f"[bold red]error:[/] {_plain(message)}")


def note(message: str) -> None:
    """Print a line on standard error that nothing has to be done about."""
    _tell(_plain(message))


def show_warning(
    message: Warning | str, category: type[Warning], *where: object, **more: object
) -> None:
    """`warnings.showwarning` for people: the sentence in one line, not the source line."""
    _tell(f"[yellow]warning:[/] {escape(one_line(str(message)))}")


@contextmanager
def progress() -> Iterator[Report]:
    """A `report(phase, fraction)` callable drawing one bar for each phase.

    On standard error, and only where that is a terminal.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = _err()
    if not console.is_terminal:
        yield lambda phase, fraction: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(compact=True))
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:
        yield lambda phase, fraction: _advance(bars, tasks, phase, fraction)


def _advance(bars: Progress, tasks: dict[str, TaskID], phase: str, fraction: float) -> None:
    if phase not in tasks:
        for earlier in tasks.values():  # phases follow one another; not all say when they end
            bars.update(earlier, completed=1.0)
        tasks[phase] = bars.add_task(escape(one_line(phase)), total=1.0)
    bars.update(tasks[phase], completed=fraction)


def step_reporter(report: Report, stages: int) -> Callable[[Step], None]:
    """A step callback that reports stage, step and progress under one bar."""

    def on_step(step: Step) -> None:
        report(f"drawing in {stages} stages", (step.step + 1) / step.steps_total)

    return on_step


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    drawn = Table(title=escape(one_line(title)), title_justify="left", header_style="bold")
    for column in columns:
        drawn.add_column(column)
    for row in rows:
        drawn.add_row(*(escape(one_line(str(cell))) for cell in row))
    _out().print(drawn)


def show(value: Any, as_json: bool, in_words: Callable[[Any], None]) -> None:
    """A command's result: as one JSON object, or for people."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")
    else:
        in_words(value)
