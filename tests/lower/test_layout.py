"""One engine for each stage, or one for all: which graphs that takes, and when it is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fresco_trt.errors import IncompatibleOptions
from fresco_trt.lower.dry_run import describe
from fresco_trt.lower.layout import graph_of, graph_signatures
from fresco_trt.lower.profiles import counts, varying
from fresco_trt.lower.request import BuildRequest, resolve
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.signatures import bypass_signature, full_signature
from fresco_trt.plan.config import LAYOUTS, CacheConfig
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.run.request import engine_name

TEXT = FLUX_TINY.text_tokens
SHARED = BuildRequest(model="flux-tiny", backend="tensorrt-rtx", target="layout=profiles")


def some_cached() -> BuildRequest:
    """Three stages, of which the first has no step to skip."""
    steps = resolve(replace(SHARED, preset="turbo")).plan.stages
    words = ["F" * stage.steps for stage in steps]
    words[1:] = ["FB" + "F" * (len(word) - 2) for word in words[1:]]
    return replace(SHARED, preset="turbo", cache=CacheConfig(name="reuse", actions=tuple(words)))


def test_a_static_layout_has_a_graph_for_each_engine() -> None:
    resolved = resolve(replace(some_cached(), target="layout=static"))
    found = graph_signatures(resolved)
    assert list(found) == [engine_name(*each) for each in resolved.plan.graphs]
    for index, action in resolved.plan.graphs:
        assert found[engine_name(index, action)] == (resolved.signature(index, action),)


def test_stages_share_one_full_and_one_bypass_graph() -> None:
    """The shared graph gives its feature at every stage, also to one that skips no step."""
    resolved = resolve(some_cached())
    tokens = resolved.plan.tokens
    assert graph_signatures(resolved) == {
        "full": tuple(full_signature(FLUX_TINY, each, TEXT, feature=True) for each in tokens),
        "bypass": tuple(bypass_signature(FLUX_TINY, each, TEXT) for each in tokens[1:]),
    }
    # What an engine is called with stays the stage's own.
    assert resolved.signature(0, "full") == full_signature(FLUX_TINY, tokens[0], TEXT)
    assert resolved.signature(1, "full") == full_signature(FLUX_TINY, tokens[1], TEXT, feature=True)


def test_without_a_cache_no_graph_gives_a_feature() -> None:
    resolved = resolve(SHARED)
    (name,) = found = graph_signatures(resolved)
    assert name == "full"
    assert found[name] == tuple(
        full_signature(FLUX_TINY, each, TEXT) for each in resolved.plan.tokens
    )


def with_mixed_stage(**changes: Any) -> BuildRequest:
    preset = Preset(
        steps=(2, 1, 1), switch=(0.8, 0.5), refine=((("even", 0.25),), ()), window=1, **changes
    )
    return replace(SHARED, plan=plan_from_preset(FLUX_TINY, preset, size=(128, 128)))


def test_a_mixed_stage_is_one_more_token_count() -> None:
    (signatures,) = graph_signatures(resolve(with_mixed_stage())).values()
    assert counts(signatures, varying(signatures)) == [64, 112, 256]


def test_every_engine_has_a_graph() -> None:
    for layout in LAYOUTS:
        resolved = resolve(replace(some_cached(), target=f"layout={layout}"))
        engines = [engine_name(*each) for each in resolved.plan.graphs]
        assert {graph_of(layout, name) for name in engines} == graph_signatures(resolved).keys()
        assert describe(replace(some_cached(), target=f"layout={layout}"))["layout"] == layout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"target": "layout=profile"},
            "layout=profile in --target; expected one of static",
        ),
        ({"backend": "onnxruntime"}, "with the backend onnxruntime; expected tensorrt or"),
        ({"backend": "eager"}, "with the backend eager"),
        ({"stages": 1}, "with one token count, 1024; expected two stages or more"),
    ],
)
def test_a_layout_that_would_change_nothing_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(IncompatibleOptions) as caught:
        resolve(replace(SHARED, **change))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("batch=0", "batch=0 in --target; expected from 1 to 64 pictures"),
        ("batch=65", "batch=65 in --target; expected from 1 to 64 pictures"),
    ],
)
def test_a_batch_out_of_range_is_refused(target: str, said: str) -> None:
    with pytest.raises(IncompatibleOptions) as caught:
        resolve(replace(SHARED, target=target))
    assert said in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_graph_takes_the_whole_batch(layout: str) -> None:
    request = replace(SHARED, target=f"layout={layout},batch=4")
    resolved, alone = resolve(request), resolve(replace(SHARED, target=f"layout={layout}"))
    pairs = zip(graph_signatures(resolved).values(), graph_signatures(alone).values(), strict=True)
    for several, one in pairs:
        assert {each.input("latents").shape[0] for each in several} == {4}
        assert [each.input("rope_cos") for each in several] == [
            each.input("rope_cos") for each in one
        ]
    summary, single = describe(request), describe(SHARED)
    assert (summary["batch"], single["batch"]) == (4, 1)
    resident, less = (each["layouts"][0]["resident_bytes"] for each in (summary, single))
    assert resident > less


def test_what_each_picture_decides_by_itself_is_in_no_batch() -> None:
    mixed = replace(with_mixed_stage(), target="batch=2")
    with pytest.raises(IncompatibleOptions, match="batch=2 with a mixed stage in --target"):
        resolve(mixed)
    plan = resolve(SHARED).plan
    fresh = tuple(replace(each, noise="fresh") for each in plan.transitions)
    request = BuildRequest(plan=replace(plan, transitions=fresh), target="batch=2")
    with pytest.raises(IncompatibleOptions, match="batch=2 with fresh noise"):
        resolve(request)


def test_phase_aligned_attention_is_refused() -> None:
    """How many of its tokens are coarse is built into such a graph."""
    request = with_mixed_stage(positions="aligned")
    with pytest.raises(IncompatibleOptions, match="with phase-aligned attention"):
        resolve(request)
    assert resolve(replace(request, target="layout=static")).target.layout == "static"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backend": "onnxruntime"}, "tensorrt-rtx, whose engines run with"),
        ({}, "write layout=profiles too, or pass --stages 1"),
    ],
)
def test_weights_are_streamed_by_one_plan_of_a_library_that_can(
    change: dict[str, Any], said: str
) -> None:
    streamed = replace(SHARED, target="stream_weights=true")
    with pytest.raises(IncompatibleOptions, match=said) as caught:
        resolve(replace(streamed, **change))
    assert "stream_weights=true in --target" in str(caught.value)
    for good in ({"target": "layout=profiles,stream_weights=true"}, {"stages": 1}):
        request = replace(streamed, **good)
        assert resolve(request).target.stream_weights
        assert describe(request)["stream_weights"]
