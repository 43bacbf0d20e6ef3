"""What is to be built: refused before anything is read, resolved to one folder a size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fresco_trt.backends import choosing
from fresco_trt.backends.base import BackendFacts, Missing
from fresco_trt.errors import (
    IncompatibleOptions,
    InvalidPlan,
    OutputNotWritable,
    PlanError,
    UnknownBackend,
    UnknownModel,
    UnknownPreset,
    UnsupportedPrecision,
    UnsupportedSize,
    UnsupportedStages,
)
from fresco_trt.lower.request import BuildRequest, requests_of, resolve
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.plan.config import CacheConfig, PresetConfig, TargetConfig
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.presets import Preset

TINY = BuildRequest(model="flux-tiny")


class Library:
    """A backend with GPUs as targets, and whatever missing a test wants."""

    name = "library"

    def __init__(self, version: str | None = "1", missing: tuple[Missing, ...] = ()) -> None:
        self._version, self._missing = version, missing

    def describe(self) -> BackendFacts:
        return BackendFacts(
            name=self.name,
            library=self.name,
            version=self._version,
            graph_format="onnx",
            targets=("sm80", "sm89", "sm120") if self._version else (),
            precisions=("fp32",),
            device="cuda",
        )

    def check(self) -> tuple[Missing, ...]:
        return self._missing


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    found = Library()
    monkeypatch.setattr(choosing, "backend", lambda name: found)
    return found


REFUSED: list[tuple[type[Exception], dict[str, Any]]] = [
    (UnknownModel, {"model": "flux-tinny"}),
    (UnknownPreset, {"preset": "slow"}),
    (UnsupportedStages, {"stages": 9}),
    (UnsupportedSize, {"size": (100, 64)}),
    (PlanError, {"stages": 1, "steps": 0}),
    (IncompatibleOptions, {"steps": 20}),
    (IncompatibleOptions, {"stages": 1, "preset": "balanced,delta=0.05"}),
    (PlanError, {"preset": "delta=0.0"}),
    (UnknownBackend, {"backend": "abacus"}),
    (UnsupportedPrecision, {"precision": "fp16"}),
    (UnsupportedPrecision, {"precision": "double"}),
    (PlanError, {"cache": CacheConfig(name="fora")}),
    (IncompatibleOptions, {"cache": CacheConfig(interval=3)}),
    (IncompatibleOptions, {"cache": CacheConfig(name="hicache", interval=1)}),
    (IncompatibleOptions, {"cache": CacheConfig(name="hicache", actions=("FB",))}),
    (IncompatibleOptions, {"cache": "hicache,basis=basis.safetensors"}),
    (IncompatibleOptions, {"target": "sm89"}),
    (IncompatibleOptions, {"target": "sm89", "backend": "eager"}),
    (IncompatibleOptions, {"graphs": Path("graphs"), "backend": "eager"}),
    (IncompatibleOptions, {"blocks": (1, 1)}),
    (IncompatibleOptions, {"blocks": (1, 1), "weights": "folder"}),
    (PlanError, {"blocks": (0, 1), "weights": "random"}),
    (PlanError, {"blocks": (1, 5), "weights": "random"}),
]


@pytest.mark.parametrize(("error", "options"), REFUSED)
def test_what_cannot_be_built_is_refused_by_resolving_alone(
    error: type[Exception], options: dict[str, Any]
) -> None:
    with pytest.raises(error):
        resolve(replace(TINY, **options))
    with pytest.raises(error):
        requests_of(replace(TINY, **options), [])


def test_defaults_are_filled_in() -> None:
    resolved = resolve(TINY)
    assert resolved.out == Path("engines/flux-tiny-256x256-3stage")
    assert (resolved.quant.precision, resolved.target.gpus) == ("fp32", ())
    assert resolved.graphs is None
    assert resolved.plan.preset == "balanced"


@pytest.mark.parametrize("stages", [2, 3])
def test_a_tolerance_places_the_switches_as_in_a_plan(stages: int) -> None:
    for delta in (0.01, 0.1):
        preset = PresetConfig(name="fast", delta=delta)
        resolved = resolve(replace(TINY, stages=stages, preset=preset))
        assert resolved.plan == make_plan(FLUX_TINY, stages=stages, preset=preset)
        assert resolved.preset == preset


def test_every_size_has_the_switches_of_its_own_grids() -> None:
    each = requests_of(replace(TINY, preset="delta=0.05"), ["64x64", "128x64", "128x128"])
    plans = {one.size: resolve(one).plan for one in each}
    switches = {size: plan.transitions[0].sigma for size, plan in plans.items()}
    assert switches[128, 64] == switches[64, 64] > switches[128, 128]


def test_a_signature_is_the_stages_own() -> None:
    resolved = resolve(TINY)
    latents = [resolved.signature(index, "full").inputs[0].shape for index in range(3)]
    assert latents == [(1, tokens, FLUX_TINY.in_channels) for tokens in resolved.plan.tokens]


def test_a_mixed_stages_engine_has_the_plans_token_count() -> None:
    """Not the count of its grid, which is that of the stage after it."""
    preset = Preset(steps=(2, 1, 1), switch=(0.8, 0.5), refine=((("even", 0.25),), ()), window=1)
    plan = plan_from_preset(FLUX_TINY, preset, size=(128, 128))
    resolved = resolve(BuildRequest(plan=plan))
    assert [
        resolved.signature(index, "full").output("velocity").shape[1] for index in range(3)
    ] == [
        64,
        112,
        256,
    ]
    aligned = replace(resolved, plan=replace(plan, positions="aligned"))
    names = [{spec.name for spec in aligned.signature(index, "full").inputs} for index in range(3)]
    assert names[0] == names[2] == {spec.name for spec in resolved.signature(1, "full").inputs}
    assert names[1] - names[0] == {"rope_cos_coarse", "rope_sin_coarse"}


def test_fewer_blocks_are_built_under_a_name_of_their_own() -> None:
    whole = resolve(replace(TINY, weights="random"))
    fewer = resolve(replace(TINY, weights="random", blocks=(1, 2)))
    assert (whole.blocks, fewer.blocks) == (None, (1, 2))
    assert (fewer.facts.double_blocks, fewer.facts.single_blocks) == (1, 2)
    assert fewer.out == Path("engines/flux-tiny-1+2blocks-256x256-3stage")
    assert fewer.plan == whole.plan
    assert fewer.signature(0, "full") == whole.signature(0, "full")


# --- a plan in place of its options -----------------------------------------------------------


def test_a_plan_is_built_as_it_is() -> None:
    plan = make_plan(FLUX_TINY, stages=2, preset="fast", size=(128, 64), cache="reuse,interval=2")
    for request in (BuildRequest(plan=plan), BuildRequest(plan=plan, model="flux-tiny")):
        resolved = resolve(request)
        assert resolved.plan is plan
        assert resolved.out == Path("engines/flux-tiny-128x64-2stage")


@pytest.mark.parametrize(
    "options",
    [
        {"stages": 3},
        {"preset": "fast"},
        {"size": (64, 64)},
        {"steps": 4},
        {"cache": "hicache"},
        {"cache": "svd,interval=2,basis=b"},
    ],
)
def test_what_a_plan_has_decided_is_refused_beside_it(options: dict[str, Any]) -> None:
    plan = make_plan(FLUX_TINY, stages=1, preset="fast", cache="svd,interval=2,warmup_steps=1")
    with pytest.raises(IncompatibleOptions, match=f"^--{next(iter(options))} beside a plan"):
        resolve(BuildRequest(plan=plan, **options))


def test_a_plan_leaves_its_basis_to_be_said() -> None:
    plan = make_plan(FLUX_TINY, stages=1, preset="fast", cache="svd,interval=2,warmup_steps=1")
    resolved = resolve(BuildRequest(plan=plan, cache="svd,basis=here"))
    assert (resolved.plan, resolved.cache.basis) == (plan, Path("here"))


def test_a_plan_of_another_model_and_none_at_all_are_refused() -> None:
    plan = make_plan(FLUX_TINY, stages=2)
    with pytest.raises(InvalidPlan, match="a plan of flux-tiny, for flux; expected a plan of flux"):
        resolve(BuildRequest(plan=plan, model="flux"))
    with pytest.raises(PlanError, match="neither a model nor a plan"):
        resolve(BuildRequest())


# --- targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked", [("sm120", "sm80"), ("sm80", "sm120"), ("sm80",) * 2 + ("sm120",)]
)
def test_targets_are_an_identity_whatever_their_order(
    library: Library, asked: tuple[str, ...]
) -> None:
    assert resolve(replace(TINY, target=TargetConfig(gpus=asked))).target.gpus == (
        "sm80",
        "sm120",
    )


@pytest.mark.parametrize("asked", ["sm75", "sm89+sm75", "sm"])
def test_an_unknown_target_is_refused_with_those_there_are(library: Library, asked: str) -> None:
    with pytest.raises(IncompatibleOptions, match="sm80, sm89, sm120"):
        resolve(replace(TINY, target=asked))


# --- several sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("out", [None, Path("here")])
def test_each_size_has_its_own_folder_under_the_parent(out: Path | None) -> None:
    each = requests_of(replace(TINY, out=out, graphs=Path("onnx")), ["64x64", "128x64"])
    names = ["flux-tiny-128x64-3stage", "flux-tiny-64x64-3stage"]
    assert [one.size for one in each] == [(128, 64), (64, 64)]
    assert [one.out for one in each] == [(out or Path("engines")) / name for name in names]
    assert [one.graphs for one in each] == [Path("onnx") / name for name in names]


@pytest.mark.parametrize("sizes", [[], ["64x64"], ["64x64", "64x64"]])
def test_one_size_is_built_where_it_was_asked_for(sizes: list[str]) -> None:
    each = requests_of(replace(TINY, out=Path("here")), sizes)
    assert [one.out for one in each] == [Path("here")]


def test_one_bad_size_refuses_all() -> None:
    with pytest.raises(UnsupportedSize, match="100x64"):
        requests_of(TINY, ["64x64", "100x64"])


def test_a_bundle_cannot_be_the_parent_of_others(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    with pytest.raises(OutputNotWritable, match="a bundle itself"):
        requests_of(replace(TINY, out=tmp_path), ["64x64", "128x64"])
