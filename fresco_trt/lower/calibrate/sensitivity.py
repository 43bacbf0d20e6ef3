"""Which layers suffer from quantising: each group alone, on the inputs of a plan's own steps.

Beside the gate: it names the group to keep in high precision, and `fresco-trt calibrate --measure
sensitivity` prints all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fresco_trt.backends.base import BorrowedRunner
from fresco_trt.lower.calibrate.trajectories import cases, denoiser_of, drawn, full_runners, in_full
from fresco_trt.lower.quantize.simulation import simulate

if TYPE_CHECKING:
    from fresco_trt.backends.base import Progress, Runner
    from fresco_trt.bundle.amax import Amax
    from fresco_trt.lower.calibrate.basis import Reference
    from fresco_trt.plan.recipes import Recipe
    from fresco_trt.plan.signature import GraphSignature
    from fresco_trt.plan.stages import StagePlan

_BLOCK = re.compile(r"^(?P<stack>\w*blocks)\.(?P<index>\d+)\.(?P<kind>.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupError:
    """Relative error of the velocity, ``|dv| / |v|`` on average over steps, with one group alone
    quantised; ``pattern`` is what keeps the group, for ``keep`` of a precision.
    """

    group: str
    pattern: str
    layers: int
    error: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Case:
    """One step of the reference: the graph's inputs in order, and its velocity."""

    signature: GraphSignature
    inputs: tuple[Tensor, ...]
    velocity: Tensor


def groups_of(layers: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Pattern and layers of every group: each block, and each kind of layer over all blocks. The
    products of attention are a layer here, by the path of their module.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for layer in layers:
        for group, pattern in _groups(layer):
            found.setdefault(group, (pattern, []))[1].append(layer)
    return {group: (pattern, tuple(names)) for group, (pattern, names) in found.items()}


def _groups(layer: str) -> Iterator[tuple[str, str]]:
    match = _BLOCK.match(layer)
    if match is None:
        yield layer, layer
        return
    block = f"{match['stack']}.{match['index']}"
    yield f"block {block}", f"{block}.*"
    yield f"kind {match['stack']}.{match['kind']}", f"{match['stack']}.*.{match['kind']}"


def measure_sensitivity(
    reference: Reference, plan: StagePlan, amax: Amax, recipe: Recipe, progress: Progress
) -> tuple[GroupError, ...]:
    """Every group's error on the first prompt's first, middle and last step of each stage, with the
    first picture where the model edits.

    Largest first. ``reference`` is the model that the amax were measured on.
    """
    groups = groups_of((*amax.layers, *amax.attention))
    cases = _cases(reference, in_full(plan))
    errors = []
    for done, (group, (pattern, layers)) in enumerate(groups.items()):
        progress("measuring sensitivity", done / len(groups))
        simulation = simulate(reference.transformer, amax, recipe, layers)
        error = fmean(_error(reference, simulation, case) for case in cases)
        errors.append(GroupError(group=group, pattern=pattern, layers=len(layers), error=error))
    progress("measuring sensitivity", 1.0)
    return tuple(sorted(errors, key=lambda each: -each.error))


def error_of(reference: Reference, plan: StagePlan, amax: Amax, recipe: Recipe) -> float:
    """The same error with every layer quantised."""
    simulation = simulate(reference.transformer, amax, recipe)
    return fmean(_error(reference, simulation, case) for case in _cases(reference, in_full(plan)))


class _Recorder(BorrowedRunner):
    """Keeps what the runner was called with and what it gave."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self.cases: list[_Case] = []

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        outputs = self._runner(inputs)
        case = _Case(
            signature=self.signature,
            inputs=tuple(inputs[spec.name].clone() for spec in self.signature.inputs),
            velocity=outputs["velocity"].clone(),
        )
        self.cases.append(case)
        return outputs


def _cases(reference: Reference, plan: StagePlan) -> list[_Case]:
    """First, middle and last step of each stage, by the unquantised model."""
    with ExitStack() as scope:
        recorders = {
            name: _Recorder(runner) for name, runner in full_runners(reference, plan, scope).items()
        }
        denoiser = denoiser_of(reference, plan, recorders)
        first = replace(reference, prompts=reference.prompts[:1], pictures=reference.pictures[:1])
        for case in cases(first, plan):
            for _ in drawn(denoiser, case, reference.seed):
                pass
    every = (recorder.cases for recorder in recorders.values())
    return [case for cases in every for case in (cases[0], cases[len(cases) // 2], cases[-1])]


def _error(reference: Reference, simulation: nn.Module, case: _Case) -> float:
    graph = reference.family.graphs.module(simulation, case.signature)
    with torch.no_grad():
        velocity = graph(*case.inputs)[0]
    return float((velocity - case.velocity).norm() / case.velocity.norm())
