"""How the command line speaks: results on standard output, progress and warnings on the other."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.progress import Progress, TaskID

    from fresco_trt.run.sampler import Step

    Report = Callable[[str, float], None]


def _out() -> Console:
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def _err() -> Console:
    return Console(file=sys.stderr, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    _out().print(escape(text))


def error(message: str) -> None:
    """Print an error on standard error."""
    _err().print(f"[bold red]error:[/] {escape(message)}")


def note(message: str) -> None:
    """Print a line on standard error that nothing has to be done about."""
    _err().print(escape(message))


def show_warning(
    message: Warning | str, category: type[Warning], *where: object, **more: object
) -> None:
    """`warnings.showwarning` for people: the sentence in one line, not the source line."""
    sentence = " ".join(str(message).split())
    _err().print(f"[yellow]warning:[/] {escape(sentence)}")


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
        tasks[phase] = bars.add_task(escape(phase), total=1.0)
    bars.update(tasks[phase], completed=fraction)


def step_reporter(report: Report, stages: int) -> Callable[[Step], None]:
    """A step callback that reports stage, step and progress under one bar."""

    def on_step(step: Step) -> None:
        report(f"drawing in {stages} stages", (step.step + 1) / step.steps_total)

    return on_step


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    drawn = Table(title=escape(title), title_justify="left", header_style="bold")
    for column in columns:
        drawn.add_column(column)
    for row in rows:
        drawn.add_row(*(escape(str(cell)) for cell in row))
    _out().print(drawn)


def show(value: Any, as_json: bool, in_words: Callable[[Any], None]) -> None:
    """A command's result: as one JSON object, or for people."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1, allow_nan=False) + "\n")
    else:
        in_words(value)
