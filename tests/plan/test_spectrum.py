"""Laws of switches placed by the spectral criterion, and SPEED's published splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fresco_trt.errors import FrescoError, IncompatibleOptions, PlanError, UnsupportedSize
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.changes import spectral_switches
from fresco_trt.plan.config import PresetConfig
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.schedule import plain_sigmas, rewind_sigma
from fresco_trt.plan.spectrum import FLUX_1, WAN_2_1, Spectrum

FLUX = model_facts("flux")
BLIND = replace(FLUX, spectrum=None)
MEASURED = [name for name in model_names() if model_facts(name).spectrum is not None]
SIZE = (1024, 1024)


def coarse_steps(sigmas: tuple[float, ...], switch: float) -> int:
    """SPEED hands over at the first step whose sigma is at or below the switch."""
    return next(index for index, sigma in enumerate(sigmas) if sigma <= switch)


@pytest.mark.parametrize(
    ("delta", "switch", "steps", "restart"),
    [
        (0.005, 0.891, 14, 0.942),
        (0.01, 0.853, 18, 0.918),
        (0.02, 0.803, 22, 0.889),
        (0.05, 0.718, 28, 0.832),
        (0.10, 0.638, 33, 0.765),
        (0.20, 0.544, 37, 0.689),
    ],
)
def test_published_splits_of_flux(delta: float, switch: float, steps: int, restart: float) -> None:
    (found,) = spectral_switches(FLUX, SIZE, 2, delta)
    sigmas = plain_sigmas(50, FLUX.shift_factor(4096))
    assert found == pytest.approx(switch, abs=6e-4)
    assert coarse_steps(sigmas, found) == steps
    assert rewind_sigma(sigmas[steps]) == pytest.approx(restart, abs=6e-4)


def test_published_split_of_flux_with_two_switches() -> None:
    first, second = spectral_switches(FLUX, SIZE, 3, 0.01)
    assert first == pytest.approx(0.934, abs=6e-4)
    assert (second,) == spectral_switches(FLUX, SIZE, 2, 0.01)
    sigmas = plain_sigmas(50, FLUX.shift_factor(4096))
    assert [coarse_steps(sigmas, each) for each in (first, second)] == [10, 18]


@pytest.mark.parametrize(("delta", "steps"), [(0.01, 23), (0.02, 27), (0.05, 33), (0.10, 37)])
def test_published_splits_of_wan(delta: float, steps: int) -> None:
    wan = replace(FLUX, name="wan", spectrum=WAN_2_1)  # the same VAE scale, at 480p and shift 5
    (found,) = spectral_switches(wan, (832, 480), 2, delta)
    assert coarse_steps(plain_sigmas(50, 5.0), found) == steps


def test_the_shorter_side_decides() -> None:
    square = spectral_switches(FLUX, (512, 512), 3, 0.05)
    assert spectral_switches(FLUX, (1024, 512), 3, 0.05) == square
    assert spectral_switches(FLUX, (512, 1024), 3, 0.05) == square


@pytest.mark.parametrize("stages", [2, 3])
def test_a_looser_tolerance_stays_coarse_for_longer(stages: int) -> None:
    tight, loose = (spectral_switches(FLUX, SIZE, stages, delta) for delta in (0.01, 0.1))
    assert all(later < earlier for earlier, later in zip(tight, loose, strict=True))


@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "turbo"])
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("name", MEASURED)
def test_delta_moves_switches_and_rewinds_and_no_step(name: str, stages: int, preset: str) -> None:
    facts = model_facts(name)
    plain = make_plan(facts, stages=stages, preset=preset)
    moved = make_plan(facts, stages=stages, preset=PresetConfig(name=preset, delta=0.03))
    switches = spectral_switches(facts, facts.default_size, stages, 0.03)
    assert tuple(each.sigma for each in moved.transitions) == switches
    keeps = facts.presets[preset][stages].restart == "same"
    restarts = switches if keeps else tuple(map(rewind_sigma, switches))
    assert tuple(each.restart for each in moved.transitions) == restarts
    assert [each.steps for each in moved.stages] == [each.steps for each in plain.stages]
    assert (plain.preset, moved.preset) == (preset, None)


@pytest.mark.parametrize(("given", "moved"), [("same", "same"), ((0.95, 0.9), "rewind")])
def test_restarts_written_for_the_old_switches_are_rewound(given: Any, moved: str) -> None:
    recipe = replace(FLUX.presets["fast"][3], restart=given)
    facts = replace(FLUX, presets={"own": {3: recipe}})
    found = make_plan(facts, stages=3, preset="own,delta=0.05")
    for each in found.transitions:
        assert each.restart == (each.sigma if moved == "same" else rewind_sigma(each.sigma))


def test_delta_gives_the_switches_of_the_presets_of_flux() -> None:
    deltas = {"quality": 0.02, "balanced": 0.05, "fast": 0.1, "turbo": 0.2}
    for name, delta in deltas.items():
        for stages in (2, 3):
            written = FLUX.presets[name][stages].switch
            assert spectral_switches(FLUX, SIZE, stages, delta) == pytest.approx(written, abs=6e-4)


def ask(
    facts: ModelFacts, delta: float, *, preset: str | None = None, stages: int = 3, **more: Any
) -> Callable[[], object]:
    asked = PresetConfig(name=preset, delta=delta)
    return lambda: make_plan(facts, stages=stages, preset=asked, **more)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (ask(BLIND, 0.05), IncompatibleOptions, "not measured; .* leave delta out"),
        (ask(FLUX, 0.05, stages=1), IncompatibleOptions, "no switch; .*--stages 2"),
        (ask(FLUX, 0.05, preset="fresco-18"), IncompatibleOptions, "mixed; .*--preset balanced"),
        (ask(FLUX, 0.0), PlanError, r"above 0 and below 1\.267.*between 0\.01 and 0\.2"),
        (ask(FLUX, -0.1), PlanError, "above 0"),
        (lambda: spectral_switches(FLUX, SIZE, 3, float("nan")), PlanError, "above 0"),
        (lambda: spectral_switches(FLUX, SIZE, 3, float("inf")), PlanError, "above 0"),
        (ask(FLUX, 1.27), PlanError, r"below 1\.267"),
        (ask(FLUX, 1.27, stages=2, size=(2048, 2048)), PlanError, r"below 1\.07"),
        (ask(FLUX, 1e-40), PlanError, "sigma rounds"),
        (ask(FLUX, 0.05, size=(1000, 1000)), UnsupportedSize, "multiple of 64"),
    ],
)
def test_a_delta_that_places_no_switch_is_refused(
    call: Callable[[], object], kind: type[FrescoError], said: str
) -> None:
    with pytest.raises(kind, match=said) as raised:
        call()
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("delta", [1e-12, 0.01, 0.2, 1.0, 1.26])
def test_a_delta_within_the_bounds_that_are_told_places_them(delta: float) -> None:
    assert len(make_plan(FLUX, stages=3, preset=PresetConfig(delta=delta)).transitions) == 2


@pytest.mark.parametrize("name", ["flux", "flux-schnell", "flux-kontext"])
def test_models_of_one_vae_share_its_spectrum(name: str) -> None:
    assert model_facts(name).spectrum == FLUX_1


def test_the_published_constants() -> None:
    assert (FLUX_1.amplitude, FLUX_1.beta) == (203.615097, 1.915461)
    assert (WAN_2_1.amplitude, WAN_2_1.beta) == (219.484718, 2.422687)
    assert all("2605.18736" in each.source for each in (FLUX_1, WAN_2_1))


@pytest.mark.parametrize(
    "change",
    [{"amplitude": 0.0}, {"amplitude": float("inf")}, {"beta": -1.0}, {"source": ""}],
)
def test_a_spectrum_has_positive_numbers_and_a_source(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="positive numbers and a source"):
        replace(FLUX_1, **change)


def test_power_halves_in_the_proportion_that_beta_says() -> None:
    spectrum = Spectrum(amplitude=8.0, beta=2.0, source="by hand")
    assert [spectrum.power(each) for each in (1.0, 2.0, 4.0)] == [8.0, 2.0, 0.5]


def test_a_spectrum_measured_at_one_size_grows_with_the_area() -> None:
    spectrum = Spectrum(amplitude=8.0, beta=2.0, source="by hand", side=32)
    assert spectrum.at(32) == spectrum
    assert spectrum.at(64).power(3.0) == pytest.approx(4 * spectrum.power(3.0))
    assert spectrum.at(64).at(32) == spectrum
    published = Spectrum(amplitude=8.0, beta=2.0, source="by hand")
    assert published.at(64) is published


def test_the_demos_switches_follow_its_size() -> None:
    facts = model_facts("flux-tiny")
    switches = [spectral_switches(facts, (side, side), 2, 0.05)[0] for side in (128, 256, 512)]
    # A grid of half the side cuts at frequencies that grow with the side, where less is left; the
    # larger area makes up for a part of it. Measured ring by ring: 0.767 at 128, 0.726 at 256.
    assert switches[0] == pytest.approx(0.767, abs=0.005)
    assert switches[1] == pytest.approx(0.726, abs=0.005)
    assert switches == sorted(switches, reverse=True)
