"""Every pair of options either resolves to one build or is refused, by name, before any work."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest

from fresco_trt.backends import backend, backend_names
from fresco_trt.errors import FrescoError, IncompatibleOptions, UnsupportedPrecision
from fresco_trt.lower.request import BuildRequest, resolve
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.plan.caching import SITES, cache_names
from fresco_trt.plan.config import LAYOUTS, CacheConfig, PresetConfig, QuantConfig, TargetConfig
from fresco_trt.plan.recipes import RECIPES

MODELS = ("flux-tiny", "flux-tiny-turbo")

AXES: dict[str, tuple[Any, ...]] = {
    "model": MODELS,
    "stages": FLUX_TINY.stage_counts,
    "preset": (
        None,
        *(PresetConfig(name=name) for name in FLUX_TINY.presets),
        PresetConfig(delta=0.05),
        PresetConfig(shift=4.0),
        PresetConfig(name="fast", delta=0.05, shift=4.0),
    ),
    "steps": (None, 6),
    "weights": (None, "random"),
    "blocks": (None, (1, 1), (2, 5)),
    "backend": backend_names(),
    "precision": tuple(
        QuantConfig(precision=precision, **settings)
        for precision in ("fp32", "bf16", "fp16", "fp8", "int8")
        for settings in (
            {},
            *({"recipe": name} for name in RECIPES),
            {"keep": ("*.to_q",)},
            {"force": True},
        )
    ),
    "cache": (
        CacheConfig(),
        *(CacheConfig(name=name) for name in cache_names()),
        *(CacheConfig(name="reuse", site=site) for site in SITES),
    ),
    "target": (
        *(
            TargetConfig(gpus=gpus, layout=layout, stream_weights=streams)
            for gpus in ((), ("sm75",), ("sm89", "sm120"))
            for layout in LAYOUTS
            for streams in (False, True)
        ),
        TargetConfig(batch=4),
    ),
}
PAIRS = list(combinations(AXES, 2))


def outcome(options: dict[str, Any]) -> FrescoError | None:
    """What refuses a build of the demo with these options, if anything does."""
    try:
        resolved = resolve(BuildRequest(**{"model": "flux-tiny", **options}))
    except FrescoError as error:
        return error
    about = resolved.backend.describe()
    assert resolved.facts.name == options.get("model", "flux-tiny")
    assert resolved.quant.precision in about.precisions
    assert (resolved.recipe is None) == (resolved.quant.precision in ("fp32", "bf16", "fp16"))
    assert (resolved.plan.cache is None) == (options.get("cache", AXES["cache"][0]).name == "none")
    return None


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda name: str(name))
def test_a_pair_of_options_is_built_or_refused_by_name(first: str, second: str) -> None:
    refused = 0
    choices = list(product(AXES[first], AXES[second]))
    for one, other in choices:
        error = outcome({first: one, second: other})
        if error is not None:
            refused += 1
            assert error.exit_code == 2
            assert error.given
            assert error.expected
            assert error.fix
    # The first choices are the defaults of both: what they name is never refused.
    assert outcome({first: AXES[first][0], second: AXES[second][0]}) is None
    assert refused < len(choices)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("library", backend_names())
def test_a_recipe_is_built_by_a_backend_or_refused_by_name(library: str, name: str) -> None:
    recipe, about = RECIPES[name], backend(library).describe()
    options: dict[str, Any] = {
        "backend": library,
        "precision": QuantConfig(precision=recipe.precision, recipe=name),
        "target": "sm89" if "sm89" in about.targets else "",
    }
    error = outcome(options)
    if recipe.precision not in about.precisions:
        assert isinstance(error, UnsupportedPrecision)
    elif (recipe.attention, recipe.tokens)[about.graph_format == "onnx"]:
        assert isinstance(error, IncompatibleOptions)
        assert error.given == f"the recipe {name} with the backend {library}"
        assert "leave recipe out" in error.fix
    else:
        assert error is None


def test_some_backends_have_attention_in_codes_and_some_do_not() -> None:
    asked = {"precision": "fp8,recipe=fp8-attention"}
    assert outcome({"backend": "onnxruntime", **asked}) is None
    assert outcome({"backend": "tensorrt-rtx", "target": "sm89", **asked}) is None
    assert isinstance(outcome({"backend": "inductor", **asked}), FrescoError)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("cache", cache_names())
@pytest.mark.parametrize("stages", FLUX_TINY.stage_counts)
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantising_caching_refining_and_distilling_go_together(
    precision: str, stages: int, cache: str, model: str
) -> None:
    # On the few steps of a student the default rule skips none; asked for, some are.
    rule = {"interval": 2, "warmup_steps": 1} if model == "flux-tiny-turbo" else {}
    choice = CacheConfig(name=cache, **rule)
    for name in ("onnxruntime", "tensorrt-rtx"):
        target = "sm89" if backend(name).describe().targets else ""
        request = BuildRequest(
            model=model,
            stages=stages,
            backend=name,
            precision=precision,
            cache=choice,
            target=target,
        )
        resolved = resolve(request)
        assert resolved.recipe is not None
        assert resolved.plan.cache is not None
        assert any(action == "bypass" for _, action in resolved.plan.graphs)


@pytest.mark.parametrize("stages", FLUX_TINY.stage_counts[1:])
def test_a_cache_that_would_skip_no_step_of_a_student_is_refused(stages: int) -> None:
    choice = CacheConfig(name="hicache")
    error = outcome({"model": "flux-tiny-turbo", "stages": stages, "cache": choice})
    assert isinstance(error, IncompatibleOptions)
    assert "skips none" in error.given
