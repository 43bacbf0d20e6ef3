"""Laws of what engines take: closed forms, and the builds that the estimates were fitted to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fresco_trt.backends import backend, backend_names
from fresco_trt.models.flux.layers import graph_parameters, with_blocks
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.models.registry import family_of, model_facts, model_names
from fresco_trt.plan.cost import WEIGHT_BYTES, activation_bytes
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.making import make_plan
from fresco_trt.plan.memory import (
    PROFILES,
    SHARED,
    STATIC,
    GraphMemory,
    Library,
    Parameters,
    bypass_activation_bytes,
    graph_memory,
    held_to_build,
    layout_memory,
    reckoning,
    tensor_bytes,
)
from fresco_trt.plan.recipes import RECIPES
from fresco_trt.plan.signature import DTYPES, GraphSignature, TensorSpec

FLUX = model_facts("flux")
LIBRARY = Library(layouts=(STATIC,), host=1000, copies=2.0, program=10, program_block=1)
NOTHING = (0, 0)


def graph(name: str, tokens: int, *, kind: str = "full", weights: int = 500) -> GraphMemory:
    """Round numbers: two blocks, 7 bytes of live tensors and 3 of scores and tensors a token."""
    return GraphMemory(
        name=name,
        kind=kind,
        blocks=2,
        weights=weights,
        activations=7 * tokens,
        scores=3 * tokens,
        tensors=3 * tokens,
    )


THREE = [graph("a", 1), graph("b", 4), graph("c", 16)]


def of_flux(facts: ModelFacts, tokens: int, precision: str) -> GraphMemory:
    """The graph of one stage with so many tokens at 1024x1024."""
    plan = make_plan(facts, stages=3)
    stage = plan.tokens.index(tokens)
    signature = stage_signature(facts, plan, stage, text_tokens=facts.text_tokens)
    return graph_memory(facts, "engine", signature, graph_parameters(facts), precision)


# --- graphs -----------------------------------------------------------------------------------


def test_flux_weighs_what_its_parameters_do() -> None:
    assert of_flux(FLUX, 4096, "bf16").weights == 2 * 11_901_408_320
    assert of_flux(FLUX, 4096, "fp32").weights == 4 * 11_901_408_320


def test_codes_take_a_byte_and_their_scales_what_the_rest_does() -> None:
    found = Parameters(whole=100, quantized=60, scales=5)
    assert found.bytes("bf16") == 60 + 2 * (40 + 5)
    assert found.bytes("fp32") == 60 + 4 * (40 + 5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_live_tensors_are_those_of_the_cost_model(precision: str) -> None:
    found = of_flux(FLUX, 1024, precision)
    assert found.activations == activation_bytes(FLUX, 1024, precision)
    assert found.scores == 24 * (1024 + 512) ** 2 * WEIGHT_BYTES[precision]
    assert found.blocks == 57


def test_inputs_and_outputs_are_counted_to_the_byte() -> None:
    inputs = (
        TensorSpec(name="a", dtype="float32", shape=(2, 3)),
        TensorSpec(name="b", dtype="int64", shape=(5,)),
    )
    outputs = (TensorSpec(name="c", dtype="bfloat16", shape=(7, 1)),)
    assert tensor_bytes(GraphSignature(inputs=inputs, outputs=outputs)) == 24 + 40 + 14


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_has_the_bytes_that_torch_gives_it(dtype: str) -> None:
    import torch

    spec = TensorSpec(name="a", dtype=dtype, shape=(3,))
    other = TensorSpec(name="b", dtype="uint8", shape=(1,))
    size = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    assert tensor_bytes(GraphSignature(inputs=(spec,), outputs=(other,))) == 3 * size + 1


@pytest.mark.parametrize("site", ["final", "trunk"])
def test_a_bypass_is_of_another_kind_and_takes_less(site: str) -> None:
    from fresco_trt.plan.config import CacheConfig

    plan = make_plan(FLUX, stages=1, steps=9, cache=CacheConfig(name="taylor", site=site))
    found = {
        action: graph_memory(
            FLUX,
            action,
            stage_signature(FLUX, plan, 0, action, text_tokens=FLUX.text_tokens),
            graph_parameters(FLUX, action, plan.cache.site if plan.cache else "final"),
            "bf16",
            action=action,
        )
        for _, action in plan.graphs
    }
    full, bypass = found["full"], found["bypass"]
    assert full.kind != bypass.kind
    assert bypass.weights < full.weights / 20
    assert (bypass.blocks, bypass.scores > 0) == ((1, True) if site == "trunk" else (0, False))
    if site == "final":
        assert bypass.activations == bypass_activation_bytes(FLUX, 4096, "bf16")
        assert bypass.activations == 4096 * (3 * 3072 + 64) * 2


def test_graphs_of_one_kind_differ_in_tokens_only() -> None:
    small, large = of_flux(FLUX, 256, "bf16"), of_flux(FLUX, 4096, "bf16")
    assert small.kind == large.kind
    assert small.weights == large.weights
    assert small.activations < large.activations
    assert small.tensors < large.tensors


# --- what a build holds -----------------------------------------------------------------------


def test_a_build_holds_the_transformer() -> None:
    assert held_to_build(Parameters(whole=100), "bf16") == (200, 0)
    assert held_to_build(Parameters(whole=100), "fp32") == (400, 0)


def test_quantising_also_holds_what_it_is_judged_by() -> None:
    quantized = Parameters(whole=100, quantized=60)
    assert held_to_build(quantized, "fp32") == (400, 240)
    assert held_to_build(quantized, "bf16") == (200 + 400, 240)
    judged = layout_memory(LIBRARY, STATIC, [graph("a", 1, weights=10)], (600, 240))
    assert judged.build == 1000 + 600 + 240
    built = layout_memory(LIBRARY, STATIC, [graph("a", 1, weights=500)], (600, 240))
    assert built.build == 1000 + 600 + 2 * 500


# --- layouts ----------------------------------------------------------------------------------


def test_static_plans_each_have_all_but_their_scratch() -> None:
    found = layout_memory(LIBRARY, STATIC, THREE, NOTHING)
    assert [each.disk for each in found.engines] == [512, 512, 512]
    assert [each.resident for each in found.engines] == [512 + 10 * n for n in (1, 4, 16)]
    assert (found.shared, found.disk) == (0, 3 * 512)
    assert found.resident == 3 * 512 + 3 * (1 + 4 + 16) + 7 * 16
    assert found.build == 1000 + 2 * 500


def test_profiles_have_the_weights_of_a_kind_once_and_one_scratch() -> None:
    mixed = [*THREE, graph("d", 4, kind="bypass", weights=40)]
    found = layout_memory(LIBRARY, PROFILES, mixed, NOTHING)
    assert found.shared == 500 + 40
    assert [each.disk for each in found.engines] == [12] * 4
    assert found.disk == 540 + 4 * 12
    assert found.resident == 540 + 4 * 12 + 3 * (1 + 4 + 16 + 4) + 7 * 16


def test_shared_weights_are_there_once_whatever_the_kinds() -> None:
    mixed = [*THREE, graph("d", 4, kind="bypass", weights=40)]
    found = layout_memory(LIBRARY, SHARED, mixed, NOTHING)
    assert (found.shared, found.disk) == (500, 500 + 4 * 12)


def test_small_shared_weights_are_relaid_for_each_engine() -> None:
    large = layout_memory(LIBRARY, SHARED, THREE, NOTHING)
    small = layout_memory(replace(LIBRARY, relaid_up_to=500), SHARED, THREE, NOTHING)
    assert small.resident - large.resident == 3 * 500
    assert small.disk == large.disk
    relaid = layout_memory(replace(LIBRARY, relaid_up_to=499), SHARED, THREE, NOTHING)
    assert relaid == large


def test_what_a_library_reserves_is_resident_only() -> None:
    lean = layout_memory(LIBRARY, STATIC, THREE, NOTHING)
    found = layout_memory(replace(LIBRARY, scratch=2.0, scores=4), STATIC, THREE, NOTHING)
    assert found.resident - lean.resident == (7 + 4 * 3) * 16
    assert (found.disk, found.build) == (lean.disk, lean.build)


@pytest.mark.parametrize("model", model_names())
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_profiles_save_all_but_one_copy_of_the_weights(model: str, stages: int) -> None:
    facts = model_facts(model)
    plan = make_plan(facts, stages=stages)
    graphs = [of_stage(facts, index, stages) for index in range(stages)]
    library = backend("tensorrt-rtx").describe().memory
    assert library is not None
    static, profiles = (
        layout_memory(library, layout, graphs, NOTHING) for layout in (STATIC, PROFILES)
    )
    saved = (len(plan.stages) - 1) * 2 * facts.parameters
    assert static.disk - profiles.disk == saved
    assert static.resident - profiles.resident >= saved
    assert static.build == profiles.build


def of_stage(facts: ModelFacts, stage: int, stages: int) -> GraphMemory:
    plan = make_plan(facts, stages=stages)
    family = family_of(facts)
    signature = family.graphs.signature(facts, plan, stage, text_tokens=facts.text_tokens)
    parameters = family.weights.parameters(facts, "full", "final")
    return graph_memory(facts, f"stage{stage + 1}", signature, parameters, "bf16")


def test_the_report_has_every_engine_and_the_whole() -> None:
    found = layout_memory(LIBRARY, PROFILES, THREE, NOTHING).to_json()
    assert (found["name"], found["shared_bytes"]) == ("profiles", 500)
    keys = {"build_bytes", "disk_bytes", "resident_bytes"}
    assert keys <= found.keys()
    engines = found["engines"]
    assert isinstance(engines, list)
    assert [each["name"] for each in engines] == ["a", "b", "c"]
    assert all(each.keys() == keys | {"name"} for each in engines)


# --- what the estimates were fitted to --------------------------------------------------------


@pytest.mark.parametrize(("singles", "peak"), [(1, 5.273e9), (3, 7.701e9), (4, 8.909e9)])
def test_builds_at_true_width_took_what_is_estimated(singles: int, peak: float) -> None:
    """Of TensorRT for RTX in bfloat16, one double-stream block and so many single-stream ones."""
    facts = with_blocks(FLUX, (1, singles))
    library = backend("tensorrt-rtx").describe().memory
    assert library is not None
    held = held_to_build(graph_parameters(facts), "bf16")
    found = layout_memory(library, STATIC, [of_flux(facts, 4096, "bf16")], held)
    assert peak < found.build < 1.1 * peak


@pytest.mark.parametrize(
    ("tokens", "reserved"), [(256, 82_024_448), (1024, 157_194_240), (4096, 468_359_168)]
)
def test_plans_at_true_width_reserve_what_is_estimated(tokens: int, reserved: int) -> None:
    library = backend("tensorrt-rtx").describe().memory
    assert library is not None
    alive = of_flux(FLUX, tokens, "bf16").activations
    assert library.scratch * alive == pytest.approx(reserved, rel=0.05)


@pytest.mark.parametrize("name", backend_names())
def test_the_reckoning_says_what_is_exact_and_what_is_not(name: str) -> None:
    library = backend(name).describe().memory
    assert library is not None
    said = reckoning(library)
    assert "exact" in said
    assert "estimated" in said
    assert ("3.3 x an engine's weights" in said) == name.startswith("tensorrt")


def test_quantising_to_codes_halves_what_blocks_weigh() -> None:
    plain = graph_parameters(FLUX)
    for recipe in RECIPES.values():
        found = graph_parameters(FLUX, recipe=recipe, kept=FLUX.high_precision)
        assert found.whole == plain.whole
        saved = plain.bytes("bf16") - found.bytes("bf16")
        assert saved == found.quantized - 2 * found.scales
        assert 0.6 < found.quantized / found.whole < 0.95
