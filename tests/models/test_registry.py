"""Laws of the model table: names answer, and every other name is told which do."""

from __future__ import annotations

import pytest

from fresco_trt.errors import UnknownModel
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.making import make_plan
from tests.plan.preset_sizes import size_for


@pytest.mark.parametrize("name", model_names())
def test_a_name_has_its_own_facts(name: str) -> None:
    assert model_facts(name).name == name


def test_the_supported_names() -> None:
    assert set(model_names()) == {
        "flux-tiny",
        "flux-tiny-turbo",
        "flux-tiny-kontext",
        "flux",
        "flux-schnell",
        "flux-kontext",
        "qwen-image",
        "qwen-image-edit",
        "qwen-image-edit-2511",
        "hunyuan-video",
        "hunyuan-tiny",
    }


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("flux-tny", "flux-tiny"),
        ("flux_schnell", "flux-schnell"),
        ("kontext", "flux-kontext"),
        ("Flux", "flux"),
        ("hunyuan-vid", "hunyuan-video"),
        ("hunyuan", "hunyuan-tiny"),
    ],
)
def test_a_misspelt_name_is_told_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownModel, match=f"did you mean {nearest}") as raised:
        model_facts(name)
    assert all(supported in raised.value.expected for supported in model_names())


@pytest.mark.parametrize("name", ["", "sdxl", "0"])
def test_a_strange_name_is_told_the_names_only(name: str) -> None:
    with pytest.raises(
        UnknownModel, match="flux-tiny, flux-tiny-turbo, flux-tiny-kontext, flux, "
    ) as raised:
        model_facts(name)
    assert "did you mean" not in str(raised.value)


@pytest.mark.parametrize("name", model_names())
def test_every_model_has_the_four_presets_for_every_stage_count(name: str) -> None:
    facts = model_facts(name)
    assert tuple(facts.presets)[:4] == ("quality", "balanced", "fast", "turbo")
    assert facts.stage_counts == (1, 2, 3)
    assert all(tuple(each) == (1, 2, 3) for each in tuple(facts.presets.values())[:4])


@pytest.mark.parametrize("name", model_names())
def test_every_preset_makes_a_plan(name: str) -> None:
    facts = model_facts(name)
    for preset, schedules in facts.presets.items():
        assert schedules
        for stages in schedules:
            plan = make_plan(facts, stages=stages, preset=preset, size=size_for(facts, preset))
            assert len(plan.stages) == stages
