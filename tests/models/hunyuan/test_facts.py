"""The facts of HunyuanVideo are those of the model that diffusers builds; its plans are clips."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch

from fresco_trt.backends.fake import FakeRunner
from fresco_trt.bench.scenes.clips import FRAMES
from fresco_trt.cli.tables import plan_table
from fresco_trt.errors import (
    FrescoError,
    IncompatibleOptions,
    InvalidPlan,
    PlanError,
    UnsupportedPrecision,
    UnsupportedSize,
)
from fresco_trt.files import peak_memory
from fresco_trt.lower.request import BuildRequest, resolve
from fresco_trt.models.hunyuan.config import transformer_config
from fresco_trt.models.hunyuan.facts import HUNYUAN_TINY, HUNYUAN_VIDEO
from fresco_trt.models.hunyuan.family import HUNYUAN
from fresco_trt.models.hunyuan.layers import graph_parameters, with_blocks
from fresco_trt.models.registry import family_of, model_facts
from fresco_trt.plan.caching import CachePlan
from fresco_trt.plan.cost import flops_of_step, plan_cost, plan_summary
from fresco_trt.plan.facts import ModelFacts
from fresco_trt.plan.grid import Grid
from fresco_trt.plan.making import make_plan, plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.signature import TEXT_BIAS
from fresco_trt.plan.stored import check_plan
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.request import Conditioning, engine_name
from fresco_trt.run.text import amplification

MIXED = Preset(steps=(2, 1, 1), switch=(0.8, 0.5), refine=((("even", 0.25),), ()), window=1)


def test_parameters_are_those_of_the_transformer() -> None:
    from diffusers import HunyuanVideoTransformer3DModel

    kind: Any = HunyuanVideoTransformer3DModel
    with torch.device("meta"):
        model = kind(**transformer_config(with_blocks(HUNYUAN_VIDEO, (1, 1))))
    kinds = (model.transformer_blocks, model.single_transformer_blocks)
    one = sum(each.numel() for each in model.parameters())
    double, single = (sum(each.numel() for each in blocks.parameters()) for blocks in kinds)
    assert one + 19 * double + 39 * single == HUNYUAN_VIDEO.parameters
    assert graph_parameters(HUNYUAN_VIDEO).whole == HUNYUAN_VIDEO.parameters


def test_the_demos_dimensions_are_those_of_what_is_trained() -> None:
    from training.video import LENGTH, SIDE
    from training.video_model import TEXT_WIDTH, new_transformer

    made: Any = new_transformer()
    wanted = transformer_config(HUNYUAN_TINY)
    assert {name: _listed(made.config[name]) for name in wanted} == wanted
    assert sum(each.numel() for each in made.parameters()) == HUNYUAN_TINY.parameters
    assert graph_parameters(HUNYUAN_TINY).whole == HUNYUAN_TINY.parameters
    assert HUNYUAN_TINY.default_size == (SIDE, SIDE, FRAMES)
    assert HUNYUAN_TINY.text_tokens >= LENGTH
    assert {HUNYUAN_TINY.text_dim, HUNYUAN_TINY.pooled_dim} == {TEXT_WIDTH}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_height_and_width_grow_and_latent_frames_stay() -> None:
    """45 rows of tokens have no half: coarse grids stand out by part of a token."""
    plan = make_plan(HUNYUAN_VIDEO, stages=3)
    assert [stage.grid for stage in plan.stages] == [
        Grid(height=24, width=40, scale=0.25, frames=33),
        Grid(height=46, width=80, scale=0.5, frames=33),
        Grid(height=90, width=160, scale=1.0, frames=33),
    ]
    assert plan.tokens == (7920, 30360, 118_800)
    assert type(plan).from_json(plan.to_json()) == plan


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("facts", [HUNYUAN_VIDEO, HUNYUAN_TINY], ids=lambda facts: facts.name)
def test_presets_save_what_they_are_named_for(facts: ModelFacts, stages: int) -> None:
    plan = make_plan(facts, stages=stages)
    summary: Any = plan_summary(facts, plan)
    found = {name: round(ratio) for name, ratio in summary["preset_flops_ratios"].items()}
    wanted = {"quality": 3, "balanced": 5, "fast": 7, "turbo": 10}
    assert {name: found[name] for name in wanted} == wanted


def test_scores_and_the_texts_own_blocks_are_counted() -> None:
    plan = make_plan(HUNYUAN_VIDEO, stages=2)
    summary: Any = plan_summary(HUNYUAN_VIDEO, plan)
    assert summary["score_bytes"] == 2 * 24 * (118_800 + 256) ** 2
    plain = flops_of_step(replace(HUNYUAN_VIDEO, text_layers=0), 118_800)
    assert plain < flops_of_step(HUNYUAN_VIDEO, 118_800) < 1.0001 * plain


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((1280, 720, 128), "--size 1280x720x125 or --size 1280x720x129"),
        ((1280, 720, 2), "--size 1280x720 or --size 1280x720x5"),
        ((1280, 720, 500), "at most 129. Fix: pass --size 1280x720x129"),
        ((1000, 720, 5), "--size 992x720x5 or --size 1008x720x5"),
    ],
)
def test_other_sizes_are_told_the_nearest(size: Any, said: str) -> None:
    with pytest.raises(UnsupportedSize, match=said):
        make_plan(HUNYUAN_VIDEO, stages=3, size=size)


def test_a_mixed_stage_needs_a_grid_that_halves() -> None:
    with pytest.raises(UnsupportedSize, match="--size 1280x704x129"):
        plan_from_preset(HUNYUAN_VIDEO, MIXED)
    plan = plan_from_preset(HUNYUAN_VIDEO, MIXED, size=(960, 544, 129))
    assert plan.tokens == (16_830, 29_454, 67_320)


def test_tubes_have_as_many_tokens_in_every_latent_frame(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And a share of each, so that an engine's shape is the plan's alone."""
    asked: dict[str, Any] = {"stages": 3, "size": (960, 544, 129)}
    free, tube = (
        make_plan(HUNYUAN_VIDEO, preset=f"fresco-18{option}", **asked)
        for option in ("", ",tube=true")
    )
    (given,), (found,) = (plan.transitions[0].refinements for plan in (free, tube))
    assert (given.count, found.count) == (6732, 33 * 204)
    assert (tube.preset, type(tube).from_json(tube.to_json())) == (None, tube)
    assert free.to_json()["transitions"] != tube.to_json()["transitions"]
    plan_table(plan_summary(HUNYUAN_VIDEO, tube))
    text = " ".join(capsys.readouterr().out.split())
    assert "refined 6732 by converged-latent in tubes over 3 steps" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "turbo,tube=true"}, "tube=true with hunyuan-video at 1280x720x129; expected a"),
        ({"preset": "fresco-18,tube=true", "size": (960, 544)}, "at 960x544; expected a clip"),
    ],
)
def test_a_tube_that_nothing_would_read_is_refused(options: Any, said: str) -> None:
    with pytest.raises(IncompatibleOptions, match=said):
        make_plan(HUNYUAN_VIDEO, stages=3, **options)


def test_a_plan_has_tubes_of_whole_frames_and_nothing_but_tubes() -> None:
    tube = replace(MIXED, tube=True)
    plan = plan_from_preset(HUNYUAN_VIDEO, tube, size=(960, 544, 129))
    first, second = plan.transitions
    (own,) = first.refinements
    for count in (own.count + 1, own.count - 33 + 1):
        wrong = replace(first, refinements=(replace(own, count=count),))
        with pytest.raises(InvalidPlan, match=f"tubes of {count} tokens in 33 latent frames"):
            replace(plan, transitions=(wrong, second))
    both = (replace(own, count=33), replace(own, count=own.count - 33, tube=False))
    with pytest.raises(InvalidPlan, match="some refinements that are tubes; expected all"):
        replace(plan, transitions=(replace(first, refinements=both), second))
    with pytest.raises(InvalidPlan, match="in 1 latent frames"):
        plan_from_preset(HUNYUAN_VIDEO, tube, size=(960, 544))
    with pytest.raises(InvalidPlan, match="a tube without refinements"):
        Preset(steps=(1,), tube=True)


def test_coarse_stages_amplify_the_text_as_jenga_does(capsys: pytest.CaptureFixture[str]) -> None:
    """Its code adds rho at half the side, -rho * log2(sqrt(1/4)), to what 2 is taken the power of:
    at rho 0.5 a token of the text weighs 2^0.5 as much.
    """
    asked: dict[str, Any] = {"stages": 3, "size": (1280, 704, 129)}
    plan = make_plan(HUNYUAN_VIDEO, preset="balanced,text_amplifier=0.5", **asked)
    weights = [math.exp(amplification(plan, index)) for index in range(3)]
    assert weights == pytest.approx([2, 2**0.5, 1])
    assert (plan.preset, type(plan).from_json(plan.to_json())) == (None, plan)
    assert "text_amplifier" not in make_plan(HUNYUAN_VIDEO, **asked).to_json()
    plan_table(plan_summary(HUNYUAN_VIDEO, plan))
    assert "a prompt's tokens weigh 2.00x, 1.41x, 1.00x" in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_stage_amplifies_a_prompts_own_tokens_and_nothing_else() -> None:
    """And a stage of tubes has the same places of every latent frame."""
    preset = replace(MIXED, refine=((("edge", 0.25),), ()), tube=True, text_amplifier=0.5)
    plan = plan_from_preset(HUNYUAN_VIDEO, preset, size=(64, 64, 9))
    signatures = {
        engine_name(index, action): HUNYUAN.graphs.signature(
            HUNYUAN_VIDEO, plan, index, action, text_tokens=8
        )
        for index, action in plan.graphs
    }
    bias = torch.tensor([[0.0] * 5 + [-1e4] * 3])
    shape = signatures["stage1.full"].input("text").shape
    given = {"text": torch.ones(shape), "pooled": torch.ones(1, 768), "guidance": torch.ones(1)}
    with ExitStack() as scope:
        fakes = {name: scope.enter_context(FakeRunner(each)) for name, each in signatures.items()}
        denoiser = Denoiser.of(HUNYUAN_VIDEO, plan, fakes, text_tokens=8)
        steps = denoiser.steps(Conditioning(inputs={**given, TEXT_BIAS: bias}), 1)
        _, _, mixed, _ = (step.mixed for step in steps)
    assert mixed is not None
    frames = mixed.refined.reshape(3, 1)
    assert (frames - frames[0]).flatten().tolist() == [0, 4, 8]
    for index in range(3):
        for call in fakes[engine_name(index, "full")].calls:
            more = amplification(plan, index)
            assert torch.equal(call[TEXT_BIAS], bias + more * (bias == 0))
            assert torch.equal(call["text"], given["text"])
    assert amplification(plan, 1) == pytest.approx(0.25 * math.log(48 / 21))


@pytest.mark.parametrize(
    ("model", "stages", "asked", "said"),
    [
        ("flux", 3, "0.5", "text_amplifier=0.5 of flux in 3 stages; expected a coarse stage of"),
        ("qwen-image", 2, "0.5", "text_amplifier=0.5 of qwen-image in 2 stages"),
        ("hunyuan-video", 1, "0.5", "text_amplifier=0.5 of hunyuan-video in 1 stage;"),
        ("hunyuan-video", 2, "-1", "text_amplifier=-1; expected a number above 0, up to 4"),
        ("hunyuan-video", 2, "5", "text_amplifier=5; expected"),
    ],
)
def test_an_amplifier_that_no_stage_could_read_is_refused(
    model: str, stages: int, asked: str, said: str
) -> None:
    with pytest.raises(PlanError, match=said):
        make_plan(model_facts(model), stages=stages, preset=f"turbo,text_amplifier={asked}")


def test_a_plan_from_a_file_amplifies_where_there_are_engines_for_it() -> None:
    facts = model_facts("flux")
    plan = replace(make_plan(facts, stages=2), text_amplifier=0.5)
    with pytest.raises(InvalidPlan, match="a plan with a text amplifier, for flux"):
        check_plan(plan, facts)
    with pytest.raises(InvalidPlan, match="a text amplifier of flux"):
        family_of(facts).graphs.signature(facts, plan, 0, text_tokens=512)
    with pytest.raises(InvalidPlan, match=r"a text amplifier of 0\.5 in 1 stages"):
        replace(make_plan(HUNYUAN_VIDEO, stages=1), text_amplifier=0.5)


CALIBRATED = replace(HUNYUAN_VIDEO, calibrated=True)


@pytest.mark.parametrize(
    ("facts", "cache", "full", "order"),
    [
        (HUNYUAN_VIDEO, "taylor", 10, 1),
        (HUNYUAN_VIDEO, "hicache", 8, 2),
        (CALIBRATED, "svd", 9, None),
        (HUNYUAN_VIDEO, "reuse", 9, 0),
        (HUNYUAN_VIDEO, "taylor,warmup_steps=3", 12, 1),
        (HUNYUAN_VIDEO, "hicache,interval=5,max_order=1", 10, 1),
        (HUNYUAN_VIDEO, f"taylor,actions=FFFB{'FB' * 23}", 26, 1),
        (model_facts("flux"), "taylor", 9, None),
    ],
    ids=lambda value: getattr(value, "name", str(value)[:24]),
)
def test_caches_of_one_stage_are_those_of_the_papers_tables(
    facts: ModelFacts, cache: str, full: int, order: int | None
) -> None:
    """50 steps of which 10, 8 or 9 are full give the published ratios of FLOPs."""
    plan = make_plan(facts, stages=1, steps=50, cache=cache)
    assert plan.full_steps == full
    assert plan.cache is not None
    own = plan.cache.traits.default_order if order is None else order
    assert plan.cache.max_order == own


def test_several_stages_keep_the_usual_rule_of_a_cache() -> None:
    plan = make_plan(HUNYUAN_VIDEO, stages=2, cache="hicache")
    assert plan.stages[0].actions[:6] == ("full", "full", "bypass", "full", "bypass", "full")
    assert plan.cache == CachePlan(name="hicache", max_order=2)


@pytest.mark.parametrize(("preset", "ratio"), [("fresco-23", 3.91), ("fresco-18", 4.92)])
def test_frescos_points_save_what_the_paper_prints(preset: str, ratio: float) -> None:
    plan = make_plan(HUNYUAN_VIDEO, stages=3, preset=preset, size=(1280, 704, 125))
    assert plan.nfe == int(preset.removeprefix("fresco-"))
    assert plan_cost(HUNYUAN_VIDEO, plan).ratio == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (
            lambda: resolve(BuildRequest(model="hunyuan-video", precision="fp8")),
            UnsupportedPrecision,
            "--precision fp8 of hunyuan-video",
        ),
        (
            lambda: resolve(BuildRequest(model="hunyuan-tiny", precision="int8")),
            UnsupportedPrecision,
            "--precision int8 of hunyuan-tiny",
        ),
        (lambda: with_blocks(HUNYUAN_VIDEO, (1,)), PlanError, "from 1,1 to 20,40"),
        (
            lambda: make_plan(HUNYUAN_VIDEO, stages=1, cache="svd,interval=3"),
            PlanError,
            "the cache svd for hunyuan-video",
        ),
        (
            lambda: make_plan(HUNYUAN_VIDEO, stages=2, preset="turbo,delta=0.05"),
            PlanError,
            "whose latents' spectrum was not measured",
        ),
    ],
)
def test_what_the_family_cannot_do_is_refused_by_name(
    call: Any, kind: type[FrescoError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        call()


@pytest.mark.parametrize("option", ["aligned", "coarse_velocity"])
def test_a_plan_that_no_graph_is_for_is_refused(option: str) -> None:
    if option == "aligned":
        plan = plan_from_preset(
            HUNYUAN_VIDEO, replace(MIXED, positions="aligned"), size=(960, 544, 129)
        )
    else:
        plan = make_plan(HUNYUAN_VIDEO, stages=1, size=(1024, 512, 9), cache=option)
    stage = len(plan.stages) // 2
    with pytest.raises(PlanError, match="of a HunyuanVideo model"):
        family_of(HUNYUAN_VIDEO).graphs.signature(HUNYUAN_VIDEO, plan, stage, text_tokens=256)


def test_scores_that_no_memory_holds_are_refused_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peak_memory, "physical_memory", lambda: 24 * 10**9)
    request = BuildRequest(model="hunyuan-video", weights="random", backend="onnxruntime")
    with pytest.raises(
        UnsupportedSize, match=r"attention over 119,056 tokens in onnxruntime: 1,361 GB .* 24.0 GB"
    ):
        resolve(request)
    resolve(replace(request, backend="eager"))
    resolve(replace(request, size=(320, 192, 9)))
