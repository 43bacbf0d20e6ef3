"""Verification passes sound engines, names the one that is not, and compares like with like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fresco_trt
from fresco_trt.backends.base import Backend, Runner
from fresco_trt.backends.comparing import ComparingRunner, OutputError, output_error
from fresco_trt.backends.fake import FakeRunner
from fresco_trt.bundle import Bundle
from fresco_trt.errors import BundleNotFound, IncompatibleOptions, PlanError, VerificationFailed
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.pipelines import drawing, loading
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.result import time_of_step
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.stages import TokenRefinement
from fresco_trt.run.selection import Window
from fresco_trt.verify import (
    PROMPT,
    TOLERANCES,
    Choices,
    Comparison,
    verify_bundle,
)

pytestmark = pytest.mark.usefixtures("traced_once")

NAMES = ("stage1.full", "stage2.full", "stage3.full")


def built(folder: Path, **options: Any) -> Path:
    """Eager engines of one stage at 64x64, two steps."""
    plan = fresco_trt.plan("flux-tiny", stages=1, steps=2, size=(64, 64))
    return fresco_trt.build(plan, backend="eager", out=folder / "bundle", **options)


class Disturbed:
    """A runner that adds an error to the velocity of another."""

    def __init__(self, runner: Runner, error: float | Tensor) -> None:
        self.signature, self._runner, self._error = runner.signature, runner, error

    def __enter__(self) -> Disturbed:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"velocity": self._runner(inputs)["velocity"] + self._error}


def disturb(monkeypatch: pytest.MonkeyPatch, name: str, error: float | Tensor) -> None:
    """Let the engine of that name be wrong whenever a bundle is loaded."""
    load = loading.load_runners

    def wrong(
        bundle: Bundle, library: Backend, scope: ExitStack, *others: Any, **more: Any
    ) -> dict[str, Runner]:
        runners = load(bundle, library, scope, *others, **more)
        return {**runners, name: Disturbed(runners[name], error)}

    monkeypatch.setattr(loading, "load_runners", wrong)


# --- engines ----------------------------------------------------------------------------------


def test_sound_engines_pass(onnx_bundle: Path) -> None:
    found = verify_bundle(onnx_bundle)
    found.require()
    assert tuple(error.engine for error in found.engines) == NAMES
    assert {error.output for error in found.engines} == {"velocity"}
    assert all(0 < error.relative < 1e-4 for error in found.engines)
    assert found.pixels <= 2


def test_sound_engines_of_the_whole_demo_pass(tmp_path: Path) -> None:
    """Every block of the trained transformer; one stage shows as much of them as three."""
    plan = fresco_trt.plan("flux-tiny", stages=1, steps=2, size=(64, 64))
    found = verify_bundle(fresco_trt.build(plan, backend="onnxruntime", out=tmp_path / "bundle"))
    found.require()
    assert all(0 < error.relative < 1e-4 for error in found.engines)
    assert found.pixels <= 2


def test_the_reference_itself_has_no_error(eager_bundle: Path) -> None:
    found = verify_bundle(eager_bundle, seed=4, prompt="a cat on a striped pink background")
    assert {(e.max, e.relative) for e in found.engines} == {(0.0, 0.0)}
    assert found.pixels == 0


def test_sound_engines_of_a_mixed_plan_pass(mixed_onnx_bundle: Path) -> None:
    found = verify_bundle(mixed_onnx_bundle)
    found.require()
    assert tuple(error.engine for error in found.engines) == NAMES
    assert all(0 < error.relative < 1e-4 for error in found.engines)


def test_the_reference_of_an_aligned_plan_is_aligned(
    aligned_bundle: Path, mixed_bundle: Path
) -> None:
    found = verify_bundle(aligned_bundle)
    assert {(e.max, e.relative) for e in found.engines} == {(0.0, 0.0)}
    assert found.pixels == 0
    pictures = []
    for path in (aligned_bundle, mixed_bundle):
        with FrescoPipeline.from_bundle(path) as pipe:
            pictures.append(pipe(PROMPT).images[0].tobytes())
    assert pictures[0] != pictures[1]


@pytest.mark.slow
def test_sound_engines_of_an_aligned_plan_pass(aligned_onnx_bundle: Path) -> None:
    found = verify_bundle(aligned_onnx_bundle)
    found.require()
    assert all(0 < error.relative < 1e-4 for error in found.engines)


@pytest.mark.parametrize("name", ["stage2.full", "stage3.full"])
def test_a_disturbed_engine_of_a_mixed_stage_is_named(
    mixed_bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    disturb(monkeypatch, name, 1e-2)
    found = verify_bundle(mixed_bundle)
    assert [error.engine for error in found.engines if error.relative > 1e-3] == [name]


def test_engines_alone_refine_what_the_reference_refined(
    mixed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though their own steps would have told them otherwise, or a rounding error tips a token."""
    runs: list[list[list[int]]] = []

    def look(step: Any, *run: Any) -> Any:
        if step.step == 0:
            runs.append([])
        runs[-1].append([] if step.mixed is None else step.mixed.refined.tolist())
        return time_of_step(step, *run)

    monkeypatch.setattr(drawing, "time_of_step", look)
    disturb(monkeypatch, "stage1.full", torch.randn(1, 64, FLUX_TINY.in_channels))
    verify_bundle(mixed_bundle)
    with FrescoPipeline.from_bundle(mixed_bundle) as pipe:
        pipe(PROMPT)
    reference, alone, unaided = runs
    assert alone == reference
    assert unaided != reference


def test_a_repeated_choice_draws_what_the_first_drew() -> None:
    """Whatever is drawn after it is then the same, too."""
    window = Window.empty(1, Grid(height=8, width=8, scale=0.5), torch.zeros(1, 16, 4))
    other = Window.empty(1, Grid(height=8, width=8, scale=0.5), torch.ones(1, 16, 4))
    refinements = [TokenRefinement(rule="random", count=3)]
    everyone, choices, drawn = torch.ones(16, dtype=torch.bool), Choices(), []
    for choose, seen in ((choices.make, window), (choices.repeat, other)):
        generator = torch.Generator().manual_seed(1)
        masks = [choose(refinements, seen, everyone, generator) for _ in range(2)]
        drawn.append([*masks, torch.rand(4, generator=generator)])
    for first, second in zip(*drawn, strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(drawn[0][0], drawn[0][1])


@pytest.mark.parametrize("name", NAMES)
def test_a_disturbed_engine_is_named(
    eager_bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    disturb(monkeypatch, name, 1e-2)
    found = verify_bundle(eager_bundle)
    with pytest.raises(VerificationFailed, match=name) as caught:
        found.require()
    # Every other engine saw the reference's own inputs, so none is blamed for this one.
    assert not any(other in str(caught.value) for other in NAMES if other != name)
    assert caught.value.exit_code == 1


def test_an_engine_that_gives_no_numbers_fails(
    eager_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, "stage2.full", nan)
    found = verify_bundle(eager_bundle)
    assert any("stage2.full" in failure and "inf" in failure for failure in found.failures)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["engines"][1]["relative"] is None
    assert json.loads(text)["passed"] is False


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_are_held_to_their_own_tolerance(tmp_path: Path, precision: str) -> None:
    found = verify_bundle(built(tmp_path, precision=precision))
    found.require()
    assert found.tolerance == TOLERANCES[precision]
    # The reference computes in float32: there is an error, and float32's tolerance would show it.
    assert all(error.relative > 1e-5 for error in found.engines)


# --- weights ----------------------------------------------------------------------------------


def test_a_bundle_of_other_weights_is_not_compared(tmp_path: Path) -> None:
    bundle = built(tmp_path, weights="random")
    with pytest.raises(IncompatibleOptions, match="those of the bundle"):
        verify_bundle(bundle, weights=str(fresco_trt.pretrained("flux-tiny")))


def test_weights_are_compared_before_engines_are_loaded(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(loading, "load_runners")
    with pytest.raises(IncompatibleOptions):
        verify_bundle(demo_bundle, weights="random")


def test_random_weights_are_known_again(tmp_path: Path) -> None:
    verify_bundle(built(tmp_path, weights="random")).require()


# --- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [nan, inf, -1e-3])
def test_a_tolerance_that_could_not_fail_or_pass_is_refused(tolerance: float) -> None:
    with pytest.raises(PlanError, match="tolerance"):
        verify_bundle("nowhere", tolerance=tolerance)


def test_a_seed_out_of_range_is_refused() -> None:
    with pytest.raises(PlanError, match="seed -1"):
        verify_bundle("nowhere", seed=-1)


def test_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound):
        verify_bundle(tmp_path)


def test_a_tolerance_of_the_caller_counts(onnx_bundle: Path) -> None:
    found = verify_bundle(onnx_bundle, tolerance=0.0)
    assert len(found.failures) == len(NAMES)


def test_progress_runs_through_every_phase(eager_bundle: Path) -> None:
    told: list[tuple[str, float]] = []
    verify_bundle(eager_bundle, progress=lambda phase, fraction: told.append((phase, fraction)))
    phases = list(dict.fromkeys(phase for phase, _ in told))
    assert phases == ["reading weights", "against eager", "engines alone"]
    for phase in phases:
        fractions = [fraction for name, fraction in told if name == phase]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0


# --- measures ---------------------------------------------------------------------------------


def test_equal_outputs_have_no_error() -> None:
    value = torch.randn(2, 3)
    found = output_error("engine", "velocity", value, value)
    assert (found.max, found.relative) == (0.0, 0.0)
    assert found.cosine == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_relative_error_and_cosine_do_not_depend_on_scale(scale: float) -> None:
    wanted, error = torch.randn(2, 3).double(), 0.1 * torch.randn(2, 3).double()
    base = output_error("engine", "velocity", wanted + error, wanted)
    found = output_error("engine", "velocity", scale * (wanted + error), scale * wanted)
    assert found.relative == pytest.approx(base.relative)
    assert found.cosine == pytest.approx(base.cosine, abs=1e-9)
    assert found.max == pytest.approx(scale * base.max)


def test_cosine_tells_a_direction_and_not_a_length() -> None:
    wanted = torch.randn(8)
    assert output_error("e", "v", 2 * wanted, wanted).cosine == pytest.approx(0.0, abs=1e-6)
    assert output_error("e", "v", -wanted, wanted).cosine == pytest.approx(2.0)


@pytest.mark.parametrize("value", [nan, inf])
def test_an_output_that_is_not_finite_is_infinitely_wrong(value: float) -> None:
    got = torch.tensor([1.0, value])
    found = output_error("engine", "velocity", got, torch.ones(2))
    assert (found.max, found.relative, found.cosine) == (inf, inf, inf)


def test_the_worst_of_two_is_worst_in_every_measure() -> None:
    one = OutputError(engine="e", output="v", max=1.0, relative=2.0, cosine=3.0)
    two = OutputError(engine="e", output="v", max=3.0, relative=1.0, cosine=2.0)
    worst = OutputError(engine="e", output="v", max=3.0, relative=2.0, cosine=3.0)
    assert one.worst(two) == two.worst(one) == worst


def test_a_picture_may_fail_alone() -> None:
    found = Comparison(engines=(), pixels=3, tolerance=1.0, pixel_tolerance=2)
    with pytest.raises(VerificationFailed, match="3 of 255"):
        found.require()
    Comparison(engines=(), pixels=2, tolerance=1.0, pixel_tolerance=2).require()


def test_a_comparison_keeps_the_worst_step_and_answers_as_the_reference(
    eager_bundle: Path,
) -> None:
    with FrescoPipeline.from_bundle(eager_bundle) as pipe:
        signature = pipe.runners["stage1.full"].signature
    shape = next(spec.shape for spec in signature.outputs)
    errors = iter((0.5, 2.0, 1.0))
    engine = FakeRunner(signature, lambda inputs: {"velocity": torch.full(shape, next(errors))})
    inputs = {spec.name: torch.zeros(spec.shape) for spec in signature.inputs}
    with engine, FakeRunner(signature) as reference:
        comparing = ComparingRunner("stage1.full", engine, reference)
        for _ in range(3):
            assert not comparing(inputs)["velocity"].any()
    assert comparing.errors["velocity"].max == 2.0
    assert len(reference.calls) == len(engine.calls) == 3
