"""Quantised graphs: modelopt's numbers, codes stored once, engines that round as foreseen."""

from __future__ import annotations

import copy
import json
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import fresco_trt
from fresco_trt.backends import backend
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.bundle.amax import Amax, LayerAmax
from fresco_trt.bundle.manifest import EngineRecord
from fresco_trt.errors import CalibrationError, ExportError
from fresco_trt.lower.calibrate import amax as measuring
from fresco_trt.lower.calibrate.amax import layers_of, measure_amax
from fresco_trt.lower.calibrate.basis import Reference
from fresco_trt.lower.calibrate.sensitivity import error_of, groups_of, measure_sensitivity
from fresco_trt.lower.calibrate.trajectories import (
    cases,
    denoiser_of,
    drawn,
    full_runners,
    in_full,
)
from fresco_trt.lower.export import export_stages
from fresco_trt.lower.quantize.fp8_modules import products_of, with_fp8_modules
from fresco_trt.lower.quantize.qdq import Quantizer, encode, input_scale
from fresco_trt.lower.quantize.simulation import RoundedLinear, simulate
from fresco_trt.lower.weights import write_source
from fresco_trt.models.flux.facts import FLUX_DEV
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.loading import transformer_from_folder
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.models.fp8 import CodedLinear, Fp8Linear, RowwiseFp8Linear
from fresco_trt.models.weights import bundled_folder, weights_digest
from fresco_trt.plan.recipes import RECIPES, Recipe
from tests.shallow import FACTS, shallow_transformer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("traced_once")]

PLAN = fresco_trt.plan("flux-tiny", stages=2, preset="turbo", size=(64, 64))
MODEL = shallow_transformer()
REFERENCE = Reference(
    facts=FACTS,
    transformer=MODEL,
    weights_sha256=weights_digest(MODEL),
    pipeline=bundled_folder("flux-tiny"),
    prompts=("a star on a plain red background", "a cat on a checked blue background"),
)
KEPT = FLUX_DEV.high_precision  # every block is quantised
NAMES = tuple(RECIPES)
GRAPHS = tuple(name for name in NAMES if not RECIPES[name].tokens)
"""Recipes whose codes stand in exported graphs."""

MODULES = ("fp8", "fp8-rowwise")
"""Recipes whose codes torch multiplies."""


def silent(*_: object) -> None:
    """Nobody listens."""


def coded_products(recipe: Recipe) -> int:
    """Of a full graph: one for each layer, and with attention two for each block."""
    return 17 + (4 if recipe.attention else 0)


@pytest.fixture(scope="module")
def calibrated() -> dict[str, tuple[Amax, nn.Module]]:
    """Amax of every recipe, measured once, beside the model that modelopt saw them in."""
    models: list[nn.Module] = []
    original = measuring._calibrated

    def kept(*arguments: Any) -> nn.Module:
        models.append(original(*arguments))
        return models[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_calibrated", kept)
        return {
            name: (measure_amax(REFERENCE, PLAN, recipe, KEPT, silent), models[-1])
            for name, recipe in RECIPES.items()
        }


@pytest.fixture(scope="module")
def measured(calibrated: dict[str, tuple[Amax, nn.Module]]) -> dict[str, Amax]:
    """Amax of every recipe."""
    return {name: amax for name, (amax, _) in calibrated.items()}


@pytest.fixture(scope="module")
def inputs() -> dict[str, Tensor]:
    """What the second stage's engine is called with at its first step."""
    seen: list[dict[str, Tensor]] = []

    class Recorder:
        def __init__(self, runner: Any) -> None:
            self.signature, self._runner = runner.signature, runner

        def __enter__(self) -> Recorder:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def __call__(self, given: Any) -> Any:
            seen.append({name: value.clone() for name, value in given.items()})
            return self._runner(given)

    with ExitStack() as scope:
        runners = full_runners(REFERENCE, in_full(PLAN), scope)
        last = {**runners, "stage2.full": Recorder(runners["stage2.full"])}
        plan = in_full(PLAN)
        case = cases(REFERENCE, plan)[0]
        for _ in drawn(denoiser_of(REFERENCE, plan, last), case, 0):
            pass
    return seen[0]


def ordered(inputs: dict[str, Tensor]) -> list[Tensor]:
    signature = stage_signature(FACTS, PLAN, 1, text_tokens=FACTS.text_tokens)
    return [inputs[spec.name] for spec in signature.inputs]


def velocity(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    signature = stage_signature(FACTS, PLAN, 1, text_tokens=FACTS.text_tokens)
    with torch.no_grad():
        result: Tensor = graph_from_signature(model, signature)(*ordered(inputs))[0]
    return result


def stage_graph(stage: int, model: nn.Module = MODEL) -> StageGraph:
    """The full graph of a stage counted from 1, not exported."""
    signature = stage_signature(FACTS, PLAN, stage - 1, text_tokens=FACTS.text_tokens)
    return StageGraph(
        name=f"stage{stage}.full",
        signature=signature,
        module=graph_from_signature(model, signature),
        onnx=None,
        weights=None,
        source=Path(),
        family="flux",
    )


def apart(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


# --- measuring --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_that_is_not_kept_has_a_range_of_every_stage(
    measured: dict[str, Amax], name: str
) -> None:
    layers = measured[name].layers
    assert tuple(layers) == layers_of(MODEL, KEPT)
    assert len(layers) == 17
    for path, found in layers.items():
        weight = MODEL.get_submodule(path).weight
        assert found.input.shape == (len(PLAN.stages),)
        assert found.weight.shape == ((weight.shape[0],) if RECIPES[name].channels else ())
        assert (found.smooth is not None) == RECIPES[name].smooth
    assert len(measured[name].attention) == (2 if RECIPES[name].attention else 0)


def test_ranges_are_the_largest_magnitudes_themselves(measured: dict[str, Amax]) -> None:
    found = measured["int8"].layers["single_transformer_blocks.0.proj_out"]
    weight = MODEL.get_submodule("single_transformer_blocks.0.proj_out").weight
    torch.testing.assert_close(found.weight, weight.abs().amax(dim=1))
    alone = measured["fp8"].layers["single_transformer_blocks.0.proj_out"]
    torch.testing.assert_close(alone.weight, weight.abs().amax())


def test_the_stages_together_reach_what_modelopt_saw(
    calibrated: dict[str, tuple[Amax, nn.Module]],
) -> None:
    amax, model = calibrated["int8"]
    for path, found in amax.layers.items():
        quantiser = model.get_submodule(path).input_quantizer
        assert float(found.input.max()) == pytest.approx(float(quantiser.amax), rel=1e-6)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_layer_rounds_as_modelopts_does(
    name: str, calibrated: dict[str, tuple[Amax, nn.Module]]
) -> None:
    found, theirs = calibrated[name]
    ours = simulate(MODEL, found, RECIPES[name])
    for path, amax in found.layers.items():
        plain = MODEL.get_submodule(path)
        width = float(amax.input.max()) / (1 if amax.smooth is None else 10)
        tokens = torch.randn(9, plain.in_features).clamp(-3, 3) * width / 3
        with torch.no_grad():
            got, exact = ours.get_submodule(path)(tokens), plain(tokens)
            wanted = theirs.get_submodule(path)(tokens)
        # A value at the middle between two codes falls to either side. FP8 has many there: its
        # codes and weights that were stored in half precision are multiples of powers of two.
        most = 0.05 if RECIPES[name].precision == "int8" else 0.2
        assert apart(got, wanted) < most * apart(wanted, exact), path


def test_measuring_leaves_the_model_as_it_was(measured: dict[str, Amax]) -> None:
    assert measured.keys() == RECIPES.keys()
    assert weights_digest(MODEL) == REFERENCE.weights_sha256
    assert {type(part) for part in MODEL.modules() if hasattr(part, "in_features")} == {nn.Linear}


def test_with_every_layer_kept_nothing_is_left_to_do() -> None:
    with pytest.raises(CalibrationError, match=r"all \d+ linear layers are kept"):
        measure_amax(REFERENCE, PLAN, RECIPES["int8"], ("*",), silent)


def test_weights_that_are_not_finite_are_said_to_be() -> None:
    broken = copy.deepcopy(MODEL)
    with torch.no_grad():
        broken.get_submodule("transformer_blocks.0.attn.to_q").weight[0, 0] = math.nan
    with pytest.raises(CalibrationError, match="finite"):
        measure_amax(replace(REFERENCE, transformer=broken), PLAN, RECIPES["int8"], KEPT, silent)


# --- codes ------------------------------------------------------------------------------------


def layer(weight: Tensor, recipe: Recipe, smooth: Tensor | None = None) -> LayerAmax:
    smoothed = weight if smooth is None else weight / smooth
    top = smoothed.abs().amax(dim=1) if recipe.channels else smoothed.abs().amax()
    return LayerAmax(input=torch.tensor([3.0]), weight=top, smooth=smooth)


@pytest.mark.parametrize("name", NAMES)
def test_codes_decode_to_within_half_a_step(name: str) -> None:
    recipe, weight = RECIPES[name], torch.randn(7, 11)
    smooth = torch.rand(11) + 0.5 if recipe.smooth else None
    codes, scales = encode(weight.numpy().T, layer(weight, recipe, smooth), recipe)
    decoded = codes.astype(np.float32) * scales
    wanted = (weight if smooth is None else weight / smooth).numpy().T
    # FP8 E4M3 keeps three bits after the leading one: a sixteenth of the value itself.
    allowed = scales / 2 if recipe.precision == "int8" else np.abs(wanted) / 16 + scales * 2**-10
    assert (np.abs(decoded - wanted) <= allowed * 1.001).all()
    assert np.abs(codes.astype(np.float32)).max() == recipe.top


def test_a_channel_of_zeros_stays_zero() -> None:
    weight = torch.randn(3, 5)
    weight[1] = 0
    recipe = RECIPES["int8"]
    codes, scales = encode(weight.numpy().T, layer(weight, recipe), recipe)
    assert not codes[:, 1].any()
    assert np.isfinite(scales).all()
    assert (scales > 0).all()


def test_inputs_beyond_their_range_saturate() -> None:
    recipe = RECIPES["fp8"]
    linear = nn.Linear(4, 2, bias=False).requires_grad_(False)
    rounded = RoundedLinear(linear, layer(linear.weight, recipe), recipe)
    assert rounded(torch.full((1, 4), 1e6)).isfinite().all()
    torch.testing.assert_close(rounded(torch.full((1, 4), 1e6)), rounded(torch.full((1, 4), 3.0)))


# --- graphs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=GRAPHS)
def exported(
    request: pytest.FixtureRequest,
    measured: dict[str, Amax],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Quantizer, tuple[StageGraph, ...]]:
    """Both stages of the plan, quantised by one recipe."""
    quantizer = Quantizer(recipe=RECIPES[request.param], amax=measured[request.param])
    graphs = [stage_graph(1), stage_graph(2)]
    folder = tmp_path_factory.mktemp("quantised")
    return quantizer, export_stages(graphs, folder, quantizer=quantizer)


def test_codes_are_stored_once_for_all_stages(
    exported: tuple[Quantizer, tuple[StageGraph, ...]],
) -> None:
    quantizer, graphs = exported
    places = []
    for graph in graphs:
        model = onnx.load(str(graph.onnx), load_external_data=False)
        codes = [each for each in model.graph.initializer if each.name.endswith("weight.codes")]
        assert len(codes) == 17
        assert not [each for each in model.graph.initializer if each.name.endswith("to_q.weight.T")]
        places.append({each.name: str(each.external_data) for each in codes})
    assert places[0] == places[1]
    assert quantizer.account.ratio <= 0.27
    kinds = {"stage1.full", "stage2.full"}
    assert quantizer.account.products.keys() == kinds
    for counted in quantizer.account.products.values():
        assert counted[quantizer.recipe.precision] == coded_products(quantizer.recipe)


def test_tokens_are_rounded_once_for_all_that_read_them_alike(
    exported: tuple[Quantizer, tuple[StageGraph, ...]],
) -> None:
    quantizer, graphs = exported
    model = onnx.load(str(graphs[0].onnx), load_external_data=False)
    rounded = [node for node in model.graph.node if node.name.endswith("input.Q")]
    # Query, key and value share; with smoothing each has factors of its own.
    assert len(rounded) == 17 if quantizer.recipe.smooth else len(rounded) < 17


def test_engines_err_as_much_as_the_simulation(
    exported: tuple[Quantizer, tuple[StageGraph, ...]],
    inputs: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    quantizer, graphs = exported
    got = by_engine(graphs[1], quantizer.recipe, inputs, tmp_path)
    plain = velocity(MODEL, inputs)
    wanted = velocity(simulate(MODEL, quantizer.amax, quantizer.recipe), inputs)
    # A last bit that differs is felt by all roundings behind it, so that the two are not the same.
    assert 0.5 < apart(got, plain) / apart(wanted, plain) < 2
    assert apart(got, plain) < 0.15


@pytest.mark.parametrize("name", GRAPHS)
def test_an_engine_rounds_one_layer_as_the_simulation_does(
    name: str, measured: dict[str, Amax], inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    last = "single_transformer_blocks.0.proj_out"
    only = replace(measured[name], layers={last: measured[name].layers[last]}, attention={})
    quantizer = Quantizer(recipe=RECIPES[name], amax=only)
    (exported,) = export_stages([stage_graph(2)], tmp_path / "graphs", quantizer=quantizer)
    got = by_engine(exported, quantizer.recipe, inputs, tmp_path)
    wanted = velocity(simulate(MODEL, only, quantizer.recipe), inputs)
    assert apart(got, wanted) < 0.1 * apart(wanted, velocity(MODEL, inputs))


def by_engine(graph: StageGraph, recipe: Recipe, inputs: dict[str, Tensor], folder: Path) -> Tensor:
    """The velocity of an ONNX Runtime engine built into ``folder``."""
    library = backend("onnxruntime")
    files = library.build(graph, BuildOptions(folder=folder, precision=recipe.precision))
    record = EngineRecord(name=graph.name, family="flux", files=files, signature=graph.signature)
    with library.load(folder, record) as runner:
        return runner(inputs)["velocity"].clone()


def test_a_layer_whose_product_is_not_there_is_named(
    measured: dict[str, Amax], tmp_path: Path
) -> None:
    found = measured["int8"]
    # An embedder's product has two-dimensional inputs: it is exported as another operator.
    embedder = "time_text_embed.text_embedder.linear_1"
    extra = replace(found, layers={embedder: found.layers["transformer_blocks.0.attn.to_q"]})
    with pytest.raises(ExportError, match=embedder) as caught:
        export_stages(
            [stage_graph(1)], tmp_path, quantizer=Quantizer(recipe=RECIPES["int8"], amax=extra)
        )
    assert "with keep" in caught.value.fix


# --- which layers mind ------------------------------------------------------------------------


def test_groups_cover_every_layer_by_block_and_by_kind(measured: dict[str, Amax]) -> None:
    from fresco_trt.plan.recipes import kept_by

    layers = tuple(measured["int8"].layers)
    groups = groups_of(layers)
    for group, (pattern, members) in groups.items():
        assert tuple(each for each in layers if kept_by((pattern,), each)) == members, group
    by_block = [each for name, (_, each) in groups.items() if name.startswith("block")]
    assert sorted(name for names in by_block for name in names) == sorted(layers)


def test_one_group_alone_hurts_less_than_all(measured: dict[str, Amax]) -> None:
    recipe, found = RECIPES["int8"], measured["int8"]
    only = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_out")
    fewer = replace(found, layers={name: found.layers[name] for name in only})
    errors = measure_sensitivity(REFERENCE, PLAN, fewer, recipe, silent)
    assert [each.error for each in errors] == sorted((e.error for e in errors), reverse=True)
    assert errors[-1].error > 0
    assert errors[0].error < error_of(REFERENCE, PLAN, found, recipe)


def test_the_scale_of_an_input_covers_all_stages() -> None:
    found = LayerAmax(input=torch.tensor([1.0, 4.0]), weight=torch.tensor(1.0))
    assert input_scale(found, RECIPES["int8"]) == pytest.approx(4.0 / 127)


# --- torch ------------------------------------------------------------------------------------


def of_codes(measured: dict[str, Amax], name: str) -> tuple[nn.Module, Quantizer]:
    quantizer = Quantizer(recipe=RECIPES[name], amax=measured[name])
    return with_fp8_modules(MODEL, quantizer), quantizer


@pytest.mark.parametrize("name", MODULES)
def test_torch_multiplies_the_codes_of_the_simulation(
    measured: dict[str, Amax], inputs: dict[str, Tensor], name: str
) -> None:
    model, quantizer = of_codes(measured, name)
    simulated = simulate(MODEL, measured[name], RECIPES[name])
    apart_by: dict[str, float] = {}

    def watch(path: str) -> Any:
        """Layer by layer: over many of them, sums in another order push inputs between codes."""

        def compare(_: nn.Module, given: tuple[Tensor], wanted: Tensor) -> None:
            apart_by[path] = apart(model.get_submodule(path)(*given), wanted)

        return compare

    for path in measured[name].layers:
        simulated.get_submodule(path).register_forward_hook(watch(path))
    velocity(simulated, inputs)
    assert apart_by.keys() == measured[name].layers.keys()
    assert max(apart_by.values()) < 1e-5
    assert quantizer.account.ratio < (0.28 if RECIPES[name].channels else 0.26)
    assert products_of(stage_graph(2, model)) == {"fp8": 17, "float": 13}
    assert not any(isinstance(each, CodedLinear) for each in MODEL.modules())


@pytest.mark.parametrize("name", MODULES)
def test_codes_survive_their_file(
    measured: dict[str, Amax], inputs: dict[str, Tensor], tmp_path: Path, name: str
) -> None:
    model, _ = of_codes(measured, name)
    again = transformer_from_folder(write_source(model, tmp_path / "transformer"))
    assert weights_digest(again) == weights_digest(model)
    assert apart(velocity(again, inputs), velocity(model, inputs)) < 1e-2


def test_the_codes_in_torch_are_those_in_the_graphs(measured: dict[str, Amax]) -> None:
    model, quantizer = of_codes(measured, "fp8")
    for name, found in measured["fp8"].layers.items():
        linear, got = MODEL.get_submodule(name), model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        assert isinstance(got, Fp8Linear)
        codes, scale = encode(linear.weight.detach().numpy().T, found, quantizer.recipe)
        assert np.array_equal(got.weight.view(torch.uint8).numpy().T, codes.view("uint8"))
        assert got.weight_scale.item() == scale
        assert got.input_scale.item() == np.float32(input_scale(found, quantizer.recipe))


def test_scales_of_rows_err_no_more_than_one_scale(measured: dict[str, Amax]) -> None:
    """Of the velocities of a full step, over both stages of the plan."""
    errors = {name: error_of(REFERENCE, PLAN, measured[name], RECIPES[name]) for name in MODULES}
    print(errors)
    assert 0 < errors["fp8-rowwise"] <= errors["fp8"]


def test_an_fp8_layer_saturates_and_keeps_the_dtype_of_its_inputs() -> None:
    unit = torch.tensor(1.0)
    linear = Fp8Linear(torch.eye(16).to(torch.float8_e4m3fn), unit, 3.0 / 448.0 * unit, None)
    given = torch.tensor([1e6, -1e6, 0.0, 3.0]).repeat(2, 5, 4)
    torch.testing.assert_close(linear(given), given.clamp(-3.0, 3.0))
    assert linear(given.bfloat16()).dtype == torch.bfloat16


def rowwise(weight: Tensor, bias: Tensor | None = None) -> RowwiseFp8Linear:
    scale = weight.abs().amax(dim=1) / 448.0
    return RowwiseFp8Linear((weight / scale[:, None]).to(torch.float8_e4m3fn), scale, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_token_and_each_channel_has_its_own_reach(dtype: torch.dtype) -> None:
    """Rows a million times apart are rounded alike: under one scale the small ones would vanish."""
    torch.manual_seed(5)
    weight = torch.randn(16, 32) * torch.logspace(-3, 0, 16)[:, None]
    tokens = (torch.randn(2, 4, 32) * torch.logspace(-4, 2, 4)[:, None]).to(dtype)
    tokens[1, 2] = 0
    bias = torch.zeros(16, dtype=dtype)
    got, exact = rowwise(weight, bias)(tokens), tokens.float() @ weight.T
    assert got.dtype == dtype
    assert not got[1, 2].any()
    relative = (got.float() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp(min=1e-9)
    assert relative.max() < 0.1
    assert torch.equal(rowwise(weight, bias + 1)(tokens * 0), torch.ones_like(got))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_a_gpu_both_kinds_are_one_product_with_scalar_scales(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """What torch is asked for there, on tensors without memory: it checks shapes and strides."""
    asked: list[dict[str, Any]] = []
    multiply = torch._scaled_mm

    def watched(*given: Tensor, **options: Any) -> Tensor:
        asked.append(options)
        return multiply(*given, **options)

    monkeypatch.setattr(torch, "_scaled_mm", watched)
    bias = torch.zeros(32, dtype=dtype)
    per_tensor = Fp8Linear(
        torch.zeros(32, 16, dtype=torch.float8_e4m3fn), torch.ones(()), torch.ones(()), bias
    )
    for each in (per_tensor, rowwise(torch.ones(32, 16), bias)):
        outputs = each.to("meta")(torch.empty(1, 7, 16, dtype=dtype, device="meta"))
        assert (outputs.shape, outputs.dtype) == ((1, 7, 32), dtype)
    for options in asked:
        assert options["scale_a"].shape == options["scale_b"].shape == ()
        assert options["use_fast_accum"]
    # Sums of codes that no scale has made small yet are beyond float16.
    assert [options["out_dtype"] for options in asked] == [
        dtype,
        torch.float32 if dtype == torch.float16 else dtype,
    ]


def test_torch_multiplies_no_codes_of_attention(measured: dict[str, Amax]) -> None:
    recipe = RECIPES["fp8-attention"]
    with pytest.raises(ValueError, match="fp8-attention quantises attention"):
        with_fp8_modules(MODEL, Quantizer(recipe=recipe, amax=measured[recipe.name]))


def test_a_graph_has_no_scales_of_tokens(measured: dict[str, Amax], tmp_path: Path) -> None:
    quantizer = Quantizer(recipe=RECIPES["fp8-rowwise"], amax=measured["fp8-rowwise"])
    with pytest.raises(ValueError, match="fp8-rowwise scales tokens"):
        export_stages([stage_graph(1)], tmp_path, quantizer=quantizer)


# --- TensorRT ---------------------------------------------------------------------------------


@pytest.mark.rtx
@pytest.mark.parametrize("name", GRAPHS)
def test_tensorrt_multiplies_the_codes(
    name: str, measured: dict[str, Amax], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    recipe = RECIPES[name]
    # What is not quantised is bfloat16 there, so that is what the graph is exported in.
    half = shallow_transformer(torch.bfloat16)
    quantizer = Quantizer(recipe=recipe, amax=measured[name])
    (exported,) = export_stages([stage_graph(2, half)], tmp_path, quantizer=quantizer)
    options = BuildOptions(folder=tmp_path, targets=("sm89",), precision=recipe.precision)
    _, products = backend("tensorrt-rtx").build(exported, options)
    counted = json.loads((tmp_path / products).read_bytes())
    assert counted.pop(recipe.precision) == coded_products(recipe)
    assert counted.keys() <= {"bf16", "float"}
