"""Points that take turns: what benches with a clock share, whatever it is that they draw.

Points take turns within a case, so that a ratio compares neighbours in time; who begins moves on
from case to case, so that no point always follows the same one. One case warms up, apart. What was
measured of a case is kept as soon as it is judged.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from fresco_trt.bench.instrument import LeftOut, said
from fresco_trt.bench.results_log import ResultsLog, differences
from fresco_trt.errors import IncompatibleOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

Case = TypeVar("Case")
Prepared = TypeVar("Prepared")
Made = TypeVar("Made")
Drawing = TypeVar("Drawing", bound="Callable[..., Any]")

WARM_UP_SEED = 10**6
"""Of the case that warms up, and of its noise: none that is measured."""


def warmed_up(
    draws: Mapping[str, Drawing], prepared: object
) -> tuple[dict[str, Drawing], list[LeftOut]]:
    """Draw one case with each point; those that cannot are left out, and say why."""
    left_out, usable = [], {}
    for name, draw in draws.items():
        try:
            draw(prepared, WARM_UP_SEED)
        except Exception as error:  # a peer's code raises whatever it likes
            left_out.append(LeftOut(what=name, reason=said(error)))
        else:
            usable[name] = draw
    return usable, left_out


def check_reference(name: str, left_out: Iterable[LeftOut]) -> None:
    """Say what was left out. Raises IncompatibleOptions if that is the point called ``name``, which
    all else is measured against.
    """
    for each in left_out:
        say(f"not measured: {each.what}: {each.reason}")
        if each.what == name:
            raise IncompatibleOptions(
                f"the point {name}, which all else is measured against: {each.reason}",
                expected="a model that draws",
                fix="pass --weights with a whole pipeline folder of the model",
            )


def take_turns(
    what: str,
    cases: Sequence[Case],
    draws: Mapping[str, Callable[[Prepared, int], Made]],
    prepare: Callable[[Case], Prepared],
    judge: Callable[[Case, dict[str, Made]], Mapping[str, Any]],
    log: ResultsLog,
) -> list[dict[str, Any]]:
    """What ``judge`` kept of each case, whose number is its seed; ``what`` a case is called.

    Goes on from what ``log`` holds; what a point raises leaves the cases before it there.
    """
    began, done = perf_counter(), len(log.scenes)
    for number, case in enumerate(cases):
        if number in log.scenes:
            continue
        prepared, names = prepare(case), list(draws)
        first = number % len(names)
        made = {name: draws[name](prepared, number) for name in names[first:] + names[:first]}
        log.add_scene(number, judge(case, made))
        each = (perf_counter() - began) / (len(log.scenes) - done)
        left = (len(cases) - len(log.scenes)) * each
        say(f"{what} {number + 1} of {len(cases)}: {each:.1f} s each, {left / 60:.1f} minutes left")
    return [log.scenes[number] for number in range(len(cases))]


def opened_log(out: Path, header: Mapping[str, Any]) -> ResultsLog:
    """What was measured so far for the document ``out``, beside it.

    Raises IncompatibleOptions for what another request began and did not end.
    """
    path = out.with_suffix(".jsonl")
    if differs := differences(path, header):
        raise IncompatibleOptions(
            f"{path} of an unfinished run that differs in {', '.join(differs)}",
            expected="the same arguments, code, weights and machine, to go on with it",
            fix=f"finish that run with its own, or delete {path} to measure anew",
        )
    log = ResultsLog(path, header)
    say(log.said)
    return log


def say(text: str) -> None:
    """A line for who waits."""
    print(text, file=sys.stderr, flush=True)
