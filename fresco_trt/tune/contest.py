"""Plans against plans at one size on one machine: those drawn at random, then what lies beside the
leaders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fresco_trt.tune.cost import covering
from fresco_trt.tune.entrants import SLACK, Entrants, entrants, speed_by, universe, within
from fresco_trt.tune.families import Ground, reference
from fresco_trt.tune.gallery import Gallery, pictures_of
from fresco_trt.tune.halving import Outcome, halve, ranked
from fresco_trt.tune.model_runner import ModelRunner
from fresco_trt.tune.neighbours import neighbours
from fresco_trt.tune.state import State

if TYPE_CHECKING:
    from fresco_trt.backends.base import Progress
    from fresco_trt.tune.families import Candidate
    from fresco_trt.tune.judge import Truth
    from fresco_trt.tune.request import Request

    Say = Callable[[str], None]

MOST_WALKED = 10**9
"""Parameters of the largest model that is walked without engines."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contest:
    """What plans are compared on: the ground they are made for, the seconds of each kind of step,
    and what draws and remembers. All galleries share the many-step pictures.
    """

    request: Request
    runner: ModelRunner
    state: State
    ground: Ground
    seconds: dict[str, float]
    progress: Progress
    say: Say
    truths: dict[int, Truth] = field(default_factory=dict)

    @classmethod
    def open(cls, request: Request, scope: ExitStack, progress: Progress, say: Say) -> Contest:
        """Build the engines of every kind of candidate and time their steps, unless an earlier run
        did; engines are freed by ``scope``. Raises as :func:`~fresco_trt.tune.job.run`.
        """
        state = State(request.options.state, request.header)
        say(f"{state.said} in {state.folder}")
        setup = replace(request.setup, engines=state.engines(request.engines))
        runner = ModelRunner(setup, scope)
        ground = Ground(facts=request.facts, size=request.size, prompt_tokens=runner.prompt_tokens)
        if request.facts.parameters <= MOST_WALKED:
            found = state.once("changes", lambda: runner.changes(reference(ground), progress))
            ground = replace(ground, changes=tuple((sigma, total) for sigma, total in found))
        plans = [each.plan for each in universe(ground, request.effort.sampled)]
        timed = covering([reference(ground), *plans])
        say(runner.require([reference(ground), *plans], progress))
        seconds: dict[str, float] = state.once(
            "seconds", lambda: runner.time(timed, request.effort.turns, progress)
        )
        return cls(
            request=request,
            runner=runner,
            state=state,
            ground=ground,
            seconds=seconds,
            progress=progress,
            say=say,
        )

    def entrants_at(self, speed: float | None) -> Entrants:
        """Who competes at a speed, or at all speeds."""
        return entrants(self.ground, self.seconds, speed, self.request.effort.rounds[0][0])

    def gallery(self, field: Entrants) -> Gallery:
        """What draws and judges them."""
        effort = self.request.effort
        first = pictures_of(effort.rounds, len(field.candidates))
        second = pictures_of(effort.rounds, effort.near) if effort.near else 0
        return Gallery(
            runner=self.runner,
            judge=self.request.judge,
            truth=reference(self.ground),
            state=self.state,
            progress=self.progress,
            say=self.say,
            pictures=first + second,
            truths=self.truths,
        )

    def hold(self, field: Entrants, gallery: Gallery, speed: float | None = None) -> Outcome:
        """The contest of a field, and one of the finalists and their neighbours, which are as fast
        as asked; ``field.speeds`` has those too afterwards. Raises EngineFailed where none can be
        drawn.
        """
        effort, floor = self.request.effort, self.request.options.floor
        first = halve(field.candidates, field.speeds, gallery, effort.rounds, floor)
        finalists = [each.candidate for each in first.finalists]
        near = self._near(finalists, field, speed) if field.reached else []
        if not near:
            return first
        second = halve([*finalists, *near], field.speeds, gallery, effort.rounds, floor)
        last = {each.candidate.name: each for each in first.everyone}
        for each in second.everyone:
            # A finalist of the first may go out early in the second, and keeps all that it drew.
            before = last.setdefault(each.candidate.name, each)
            if len(each.figures) > len(before.figures):
                last[each.candidate.name] = each
        won = {each.candidate.name for each in second.finalists}
        others = [each for name, each in last.items() if name not in won]
        return Outcome(
            finalists=second.finalists, everyone=(*second.finalists, *ranked(others, floor))
        )

    def _near(
        self, finalists: Sequence[Candidate], field: Entrants, target: float | None
    ) -> list[Candidate]:
        speed = speed_by(self.ground, self.seconds)
        found: list[Candidate] = []
        for place, leader in enumerate(finalists):
            own = field.speeds[leader.name]
            low, high = (own / SLACK, own * SLACK) if target is None else (target, target * SLACK)
            # Evenly, and where they are few the better ones have more.
            count = math.ceil((self.request.effort.near - len(found)) / (len(finalists) - place))
            found += neighbours(
                leader,
                self.ground,
                within(speed, low, high),
                count=count,
                known=[*field.candidates, *found],
            )
        field.speeds.update({each.name: speed(each.plan) or 0.0 for each in found})
        return found
