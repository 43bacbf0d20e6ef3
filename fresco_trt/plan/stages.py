"""StagePlan: the one description of a run that everything else reads.

Made from a preset (:mod:`fresco_trt.plan.presets`), lowered stage by stage, stored in the bundle,
and walked by the sampler. It and its parts are frozen and check their invariants when made, so
whoever holds one need not check again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from fresco_trt.errors import InvalidPlan
from fresco_trt.plan.caching import ACTIONS as ACTIONS
from fresco_trt.plan.caching import Action as Action
from fresco_trt.plan.caching import CachePlan as CachePlan
from fresco_trt.plan.editing import EditPlan as EditPlan
from fresco_trt.plan.editing import check_edit
from fresco_trt.plan.grid import Grid, Size, velocity_grid_of
from fresco_trt.plan.meetings import check_meetings
from fresco_trt.plan.reading import REMAKE, agree, choice, items, number, record, text, whole
from fresco_trt.plan.refinement import SELECTIONS as SELECTIONS
from fresco_trt.plan.refinement import Selection as Selection
from fresco_trt.plan.refinement import TokenRefinement as TokenRefinement
from fresco_trt.plan.refinement import check_tubes
from fresco_trt.plan.schedule import MAX_STEPS
from fresco_trt.plan.sparse import SPARSE, check_share, share_from_json
from fresco_trt.plan.stage import LIFTS as LIFTS
from fresco_trt.plan.stage import (
    MAX_AMPLIFIER,
    STAGE_EXTRAS,
    STAGE_KEYS,
    stage_from_json,
    stage_to_json,
)
from fresco_trt.plan.stage import NOISES as NOISES
from fresco_trt.plan.stage import POSITIONS as POSITIONS
from fresco_trt.plan.stage import REFERENCES as REFERENCES
from fresco_trt.plan.stage import SOLVERS as SOLVERS
from fresco_trt.plan.stage import Lift as Lift
from fresco_trt.plan.stage import Noise as Noise
from fresco_trt.plan.stage import Positions as Positions
from fresco_trt.plan.stage import References as References
from fresco_trt.plan.stage import Solver as Solver
from fresco_trt.plan.stage import Stage as Stage
from fresco_trt.plan.stage import Transition as Transition

_PLAN_KEYS = (
    "model",
    "size",
    "preset",
    "solver",
    "positions",
    "cache",
    "nfe",
    "stages",
    "transitions",
)
_PLAN_EXTRAS = ("edit", "references", "text_amplifier", SPARSE)
"""Keys that only some plans have: the others are written as they were before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """A whole run: stages from coarse to full resolution and the transitions between them.

    ``size`` is (width, height) in picture pixels, and frames of a clip; ``preset`` names where the
    numbers come from, or is None. ``solver`` takes the steps; ``positions`` are the units that a
    mixed grid is numbered in, or "aligned": every query's own. ``references`` are reference
    pictures as "coarse" as each stage's tokens are, or "fine" in every stage. ``cache`` predicts
    what bypass steps start from; a plan has it if and only if it has such steps. ``text_amplifier``
    is how much more coarse stages see of the text (:func:`fresco_trt.run.text.amplification`), 0
    for no more; ``sparse_attention`` the share of blocks of keys that is seen. Raises InvalidPlan
    unless: there is one transition between each two stages; the first starts at or below 1 and the
    last, at scale 1 and in the size's proportions, ends at 0; there are at most
    :data:`~fresco_trt.plan.schedule.MAX_STEPS` steps; no grid is coarser than the one before, and
    its sides follow its scale; neighbours meet at the transition's sigmas; a rewind from s to a
    grid r times finer restarts at r*s/(1+(r-1)*s); a mixed grid doubles the whole one before it,
    stays until every token is expanded, and is not the last; and refinements leave a token coarse
    and look back over no more steps than there are.

    With ``edit`` the first stage is a draft, and one of those after it draws what the edit touches.
    They are alternatives: one mixed stage or more, each of more tokens, then the whole grid, all of
    the same sigmas and entered alike. Only such a plan refines tokens that are "edited".
    """

    model: str
    size: Size
    stages: tuple[Stage, ...]
    transitions: tuple[Transition, ...]
    preset: str | None = None
    solver: Solver = "euler"
    positions: Positions = "fine"
    references: References = "coarse"
    cache: CachePlan | None = None
    edit: EditPlan | None = None
    text_amplifier: float = 0.0
    sparse_attention: float | None = None

    def __post_init__(self) -> None:
        _check_length(self)
        _check_ends(self)
        _check_choices(self)
        _check_cache(self)
        is_edit = self.edit is not None
        check_meetings(self.stages, self.transitions, self.refined, self.tokens, is_edit=is_edit)
        every = [each for change in self.transitions for each in change.refinements]
        check_tubes(every, self.stages[0].grid.frames)
        check_edit(self.edit, self.stages, self.transitions, self.refined)

    @property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """The stages, counted from 0, that a request may take, in order: all of them, or those of
        an edit, the draft and one other.
        """
        every = range(len(self.stages))
        return tuple((0, other) for other in every[1:]) if self.edit else (tuple(every),)

    @property
    def nfe(self) -> int:
        """Sampling steps of a request, bypass steps included, as the papers' tables count them."""
        return sum(self.stages[index].steps for index in self.paths[0])

    @property
    def full_steps(self) -> int:
        """Steps of a request that run the whole network; of an edit's paths, the most."""
        counts = [stage.actions.count("full") for stage in self.stages]
        return max(sum(counts[index] for index in path) for path in self.paths)

    def steps_before(self, stage: int) -> int:
        """Steps that a request takes before it enters a stage, counted from 0."""
        path = next(path for path in self.paths if stage in path)
        return sum(self.stages[index].steps for index in path[: path.index(stage)])

    @property
    def mirrors(self) -> tuple[bool, ...]:
        """Whether the reference pictures of a stage have the tokens of its target, coarse ones
        among them; else they are on a whole grid.
        """
        mirrored = self.edit is not None and self.references == "coarse"
        return tuple(mirrored and refined > 0 for refined in self.refined)

    def reference_grid(self, stage: int) -> Grid:
        """The grid of reference pictures in a stage, counted from 0, where that is a whole one."""
        return self.stages[-1 if self.references == "fine" else stage].grid

    @property
    def reference_tokens(self) -> tuple[int, ...]:
        """Tokens of one reference picture in each stage."""
        rows = enumerate(zip(self.tokens, self.mirrors, strict=True))
        return tuple(
            own if mirrors else self.reference_grid(i).tokens for i, (own, mirrors) in rows
        )

    @property
    def graphs(self) -> tuple[tuple[int, Action], ...]:
        """Every graph that is called: the stage, counted from 0, and the action."""
        return tuple(
            (index, action)
            for index, stage in enumerate(self.stages)
            for action in ACTIONS
            if action in stage.actions
        )

    @property
    def tokens(self) -> tuple[int, ...]:
        """Image tokens of each stage: its grid's, less three for each four not yet expanded."""
        counts = [self.stages[0].grid.tokens]
        for stage, transition in zip(self.stages[1:], self.transitions, strict=True):
            mixed = None if transition.count is None else counts[-1] + 3 * transition.count
            counts.append(stage.grid.tokens if mixed is None else mixed)
        return tuple(counts)

    @property
    def cuts_text(self) -> bool:
        """Whether a stage says how much of the prompt's text it takes."""
        return any(stage.text_tokens is not None for stage in self.stages)

    def text_tokens(self, whole: int) -> tuple[int, ...]:
        """Text tokens of each stage, for a prompt that is encoded to ``whole`` of them."""
        return tuple(min(stage.text_tokens or whole, whole) for stage in self.stages)

    @property
    def refined(self) -> tuple[int, ...]:
        """Coarse tokens already expanded in each stage: 0 on a whole grid."""
        counts = [0]
        for transition in self.transitions:
            counts.append(0 if transition.count is None else counts[-1] + transition.count)
        return tuple(counts)

    @property
    def velocity_grid(self) -> Grid | None:
        """The grid that bypass steps run on, for the cache coarse_velocity; None for others."""
        is_velocity = self.cache is not None and self.cache.site == "velocity"
        return velocity_grid_of(self.stages[-1].grid) if is_velocity else None

    @property
    def finest(self) -> frozenset[int]:
        """The stages, counted from 0, on the whole grid of full resolution."""
        rows = enumerate(zip(self.stages, self.refined, strict=True))
        return frozenset(i for i, (stage, refined) in rows if stage.grid.scale == 1 and not refined)

    @property
    def aligned(self) -> tuple[int, ...]:
        """``refined`` of the stages whose attention is phase-aligned, 0 for the others."""
        return self.refined if self.positions == "aligned" else (0,) * len(self.stages)

    def to_json(self) -> dict[str, object]:
        """The plan as JSON values; derived numbers are written too, for whoever reads by eye."""
        rows = zip(self.stages, self.tokens, self.refined, strict=True)
        return {
            "model": self.model,
            "size": list(self.size),
            "preset": self.preset,
            "solver": self.solver,
            "positions": self.positions,
            "cache": None if self.cache is None else self.cache.to_json(),
            "nfe": self.nfe,
            "stages": [stage_to_json(*row) for row in rows],
            "transitions": [transition.to_json() for transition in self.transitions],
            **({} if self.edit is None else {"edit": self.edit.to_json()}),
            **({} if self.references == "coarse" else {"references": self.references}),
            **({"text_amplifier": self.text_amplifier} if self.text_amplifier else {}),
            **({} if self.sparse_attention is None else {SPARSE: self.sparse_attention}),
        }

    @classmethod
    def from_json(cls, value: object) -> StagePlan:
        """Exact inverse of :meth:`to_json`.

        Raises InvalidPlan for a missing or unknown key, a wrong type, a broken invariant, or a
        derived number that does not follow from the others.
        """
        found = record(value, _PLAN_KEYS, "plan", _PLAN_EXTRAS)
        size = [whole(side, "plan size") for side in items(found["size"], "plan size")]
        if len(size) not in (2, 3):
            expected = "[width, height], or [width, height, frames] of a clip"
            raise _invalid(f"a plan size of {len(size)} numbers", expected)
        stages = items(found["stages"], "plan stages")
        preset, cache = found["preset"], found["cache"]
        plan = cls(
            model=text(found["model"], "plan model"),
            size=(size[0], size[1]) if len(size) == 2 else (size[0], size[1], size[2]),
            stages=tuple(stage_from_json(stage) for stage in stages),
            transitions=tuple(
                Transition.from_json(each) for each in items(found["transitions"], "transitions")
            ),
            preset=None if preset is None else text(preset, "plan preset"),
            solver=choice(found["solver"], SOLVERS, "plan solver"),
            positions=choice(found["positions"], POSITIONS, "plan positions"),
            cache=None if cache is None else CachePlan.from_json(cache),
            edit=EditPlan.from_json(found["edit"]) if "edit" in found else None,
            references=choice(found.get("references", "coarse"), REFERENCES, "plan references"),
            text_amplifier=number(found.get("text_amplifier", 0.0), "plan text_amplifier"),
            sparse_attention=share_from_json(found),
        )
        agree(whole(found["nfe"], "plan nfe"), plan.nfe, "plan nfe")
        for stage, tokens, refined in zip(stages, plan.tokens, plan.refined, strict=True):
            stored = record(stage, STAGE_KEYS, "stage", STAGE_EXTRAS)
            agree(whole(stored["tokens"], "stage tokens"), tokens, "stage tokens")
            agree(whole(stored["refined"], "stage refined"), refined, "stage refined")
        return plan

    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON: equal plans and only those have equal digests."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def _check_length(plan: StagePlan) -> None:
    if plan.nfe > MAX_STEPS:
        raise _invalid(f"a plan of {plan.nfe} steps", f"at most {MAX_STEPS}")


def _check_ends(plan: StagePlan) -> None:
    if not plan.model:
        raise _invalid("a plan for no model", "a model name")
    if len(plan.transitions) != len(plan.stages) - 1:
        given = f"{len(plan.stages)} stages with {len(plan.transitions)} transitions"
        raise _invalid(given, "at least one stage, and one transition between each two")
    last = plan.stages[-1]
    if last.grid.scale != 1.0:
        raise _invalid(f"a last stage at scale {last.grid.scale}", "full resolution, scale 1")
    if last.sigmas[-1] != 0.0:
        raise _invalid(f"a plan that ends at sigma {last.sigmas[-1]}", "0")
    width, height = plan.size[:2]
    if (
        min(plan.size) < 1
        or width % last.grid.width
        or (width * last.grid.height != height * last.grid.width)
    ):
        expected = f"a whole multiple of the last grid, {last.grid}"
        raise _invalid(f"a picture of {width}x{height} pixels", expected)
    frames = plan.size[2] if len(plan.size) == 3 else 1
    if (frames == 1) != (last.grid.frames == 1) or frames < last.grid.frames:
        raise _invalid(f"a clip of {frames} frames", f"as the last grid has, {last.grid}")


def _check_choices(plan: StagePlan) -> None:
    chosen = (plan.solver, SOLVERS), (plan.positions, POSITIONS), (plan.references, REFERENCES)
    for value, options in chosen:
        if value not in options:
            raise _invalid(f"a plan by {value!r}", f"one of {', '.join(options)}")
    check_share(plan.sparse_attention)
    if plan.references == "fine" and len(plan.stages) == 1:
        raise _invalid("references 'fine' in a plan of one stage", "'coarse': both say the same")
    amplifier, most = plan.text_amplifier, MAX_AMPLIFIER if plan.transitions else 0.0
    if not 0.0 <= amplifier <= most:
        given = f"a text amplifier of {amplifier} in {len(plan.stages)} stages"
        raise _invalid(given, f"at most {MAX_AMPLIFIER}, and a coarse stage to read it")
    if plan.positions != "fine" and not any(each.is_partial for each in plan.transitions):
        # Nothing would read it: on a whole grid both say the same.
        given = f"positions {plan.positions!r} in a plan without a mixed stage"
        raise _invalid(given, "positions 'fine'")


def _check_cache(plan: StagePlan) -> None:
    skipped = plan.nfe - plan.full_steps
    if skipped and plan.cache is None:
        raise _invalid(f"{skipped} bypass steps in a plan without a cache", "a cache for them")
    if plan.cache is not None and plan.cache.site == "trunk" and plan.positions == "aligned":
        given = "a cache at the trunk of phase-aligned attention"
        raise _invalid(given, "the site 'final', or positions 'fine'")
    if plan.velocity_grid is not None and not plan.finest.issuperset(_bypassing(plan)):
        raise _invalid(
            "a coarse velocity in a coarse or mixed stage", "bypass steps on the full grid only"
        )
    if plan.cache is not None and not skipped:
        raise _invalid(f"the cache {plan.cache.name} in a plan of full steps", "a bypass step")


def _bypassing(plan: StagePlan) -> list[int]:
    return [index for index, stage in enumerate(plan.stages) if "bypass" in stage.actions]


def _invalid(given: str, expected: str) -> InvalidPlan:
    return InvalidPlan(given, expected=expected, fix=REMAKE)
