"""Selective edits of Qwen-Image-Edit: a mixed stage is diffusers' own transformer at its tokens'
places, and masks, given and found, lead into every stage behind the draft.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fresco_trt
from fresco_trt.bundle import open_bundle
from fresco_trt.models.qwen import prompts
from fresco_trt.models.qwen.facts import QWEN_IMAGE_EDIT
from fresco_trt.models.qwen.family import QWEN, rescaled
from fresco_trt.models.qwen.graph import graph_from_signature
from fresco_trt.models.qwen.loading import load_transformer
from fresco_trt.models.qwen.tokens import THETA, QwenPatchifier
from fresco_trt.models.registry import register, unregister
from fresco_trt.pipelines.edit import example_source
from fresco_trt.pipelines.request import GenerateRequest
from fresco_trt.pipelines.several import FrescoPipelines
from fresco_trt.plan.cost import flops_of_step, path_flops, plan_summary
from fresco_trt.plan.editing import SELECTIVE_PRESET
from fresco_trt.plan.making import make_plan
from fresco_trt.run.mixed import Mixed
from fresco_trt.run.positions import mixed_tables
from fresco_trt.run.resample import block_mean
from fresco_trt.run.transition import estimate_x0
from fresco_trt.verify import verify_bundle
from tests.models.qwen.small import EDIT, EDIT_2511

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fresco_trt.pipelines.image import FrescoPipeline
    from fresco_trt.plan.facts import ModelFacts
    from fresco_trt.plan.stages import StagePlan

SIDE, PROMPT = 64, "make the square blue"

# A draft of 4x4 tokens, for a VAE that enlarges by 4.
FACTS = replace(
    EDIT_2511,
    name="small-selective",
    family="small-selective",
    double_blocks=1,
    text_tokens=352,
    vae_scale=4,
)


def plan_of(facts: ModelFacts, **options: Any) -> StagePlan:
    return make_plan(facts, stages=4, preset=SELECTIVE_PRESET, size=(SIDE, SIDE), **options)


# --- a mixed stage ----------------------------------------------------------------------------


class Places(nn.Module):
    """In the place of diffusers' table of whole rows and columns: any places, text on the diagonal
    from ``first`` on.
    """

    def __init__(self, axes: tuple[int, ...], places: list[tuple[float, ...]], first: int) -> None:
        super().__init__()
        self.axes, self.places, self.first = axes, places, first

    def forward(self, shapes: Any, max_txt_seq_len: int, device: Any) -> tuple[Tensor, Tensor]:
        text = [(float(self.first + index),) * 3 for index in range(max_txt_seq_len)]
        return self.turns(self.places), self.turns(text)

    def turns(self, places: list[tuple[float, ...]]) -> Tensor:
        columns = zip(self.axes, torch.tensor(places).unbind(1), strict=True)
        angles = [
            torch.outer(values, THETA ** -(torch.arange(0, width, 2) / width))
            for width, values in columns
        ]
        whole = torch.cat(angles, dim=1)
        return torch.polar(torch.ones_like(whole), whole)


@pytest.mark.parametrize("facts", [EDIT, EDIT_2511], ids=lambda facts: facts.name)
def test_a_mixed_stage_is_diffusers_transformer_at_the_centres_of_cells(facts: ModelFacts) -> None:
    """Rows are odd in number on the coarse grid, whose middle then is no whole place."""
    plan = make_plan(facts, stages=3, preset=SELECTIVE_PRESET, size=(96, 160))
    coarse, fine, count = plan.stages[0].grid, plan.stages[-1].grid, plan.refined[1]
    assert (coarse.rows, coarse.columns) == (5, 3)
    expanded = torch.arange(coarse.tokens) % 4 == 1
    assert int(expanded.sum()) == count
    mixed = Mixed.from_mask(coarse, fine, expanded, count)

    signature = QWEN.graphs.signature(facts, plan, 1, text_tokens=facts.text_tokens)
    tokens = signature.output("velocity").shape[1]
    assert signature.input("latents").shape[1] == 2 * tokens == 2 * mixed.tokens
    drawn = torch.Generator().manual_seed(2)
    given = {spec.name: torch.randn(spec.shape, generator=drawn) for spec in signature.inputs}
    given["timestep"] = torch.tensor([0.4])
    given["text_mask"] = torch.ones_like(given["text_mask"])
    patchifier = QwenPatchifier(facts, facts.text_tokens)
    given |= mixed_tables(patchifier, mixed, plan.positions, 1, mirrored=True)

    # In words: on the full grid of 10x6 counted from its middle, a coarse token in the middle of
    # its four, the children of each refined one behind them; the source at the same places.
    corners = [
        (2.0 * row - 5, 2.0 * column - 3)
        for row in range(coarse.rows)
        for column in range(coarse.columns)
    ]
    middles = [(row + 0.5, column + 0.5) for row, column in corners]
    order = [*mixed.kept.tolist(), *mixed.refined.tolist()]
    places = [middles[index] for index in order[: len(mixed.kept)]]
    for index in order[len(mixed.kept) :]:
        row, column = corners[index]
        places += [(row + down, column + right) for down in (0, 1) for right in (0, 1)]
    both = [(float(image), *place) for image in range(2) for place in places]

    model: Any = load_transformer("random", facts)
    with torch.no_grad():
        (velocity,) = graph_from_signature(model, signature)(*given.values())
        model.pos_embed = Places(facts.rope_axes, both, first=5)
        theirs = model(
            hidden_states=given["latents"],
            encoder_hidden_states=given["text"],
            timestep=given["timestep"],
            img_shapes=[[(1, 1, tokens)] * 2],
            return_dict=False,
        )[0]
    torch.testing.assert_close(velocity, theirs[:, :tokens], atol=1e-5, rtol=1e-5)


# --- what a preset says -----------------------------------------------------------------------


@pytest.mark.parametrize("stages", [3, 4, 5])
def test_the_preset_compares_as_spotedit_does_on_this_vae(stages: int) -> None:
    plan = make_plan(EDIT, stages=stages, preset=SELECTIVE_PRESET, size=(256, 256))
    assert plan.edit is not None
    assert (plan.edit.discrepancy, plan.edit.threshold, plan.edit.dilation) == ("features", 0.15, 1)
    draft, *others = (
        2 * stage.steps * flops_of_step(EDIT, tokens, references=tokens)
        for stage, tokens in zip(plan.stages, plan.tokens, strict=True)
    )
    assert path_flops(EDIT, plan) == pytest.approx([draft + other for other in others])


@pytest.mark.parametrize(("steps", "ratios"), [(28, [4.98, 3.13]), (50, [8.89, 5.59])])
def test_the_saving_beside_plain_steps_is_what_the_page_on_edits_says(
    steps: int, ratios: list[float]
) -> None:
    plan = make_plan(QWEN_IMAGE_EDIT, stages=3, preset=SELECTIVE_PRESET)
    found = plan_summary(QWEN_IMAGE_EDIT, plan, steps)["path_flops_ratios"]
    assert found == pytest.approx(ratios, abs=0.005)


# --- from a mask to a picture -----------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    """The model, and an encoder that sees a picture of the size that is drawn."""
    register(replace(QWEN, name=FACTS.family, models=(FACTS,)))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prompts, "SEEN_PIXELS", dict.fromkeys(prompts.PIPELINES, SIDE * SIDE))
        yield
    unregister(FACTS.family)


@pytest.fixture(scope="module")
def folder(_registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 of the draft's 16 tokens refined in a mixed stage, or 2, or all."""
    where = tmp_path_factory.mktemp("selective") / "bundle"
    plan = plan_of(FACTS, cache="hicache")
    return fresco_trt.build(plan, weights="random", backend="eager", out=where)


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Iterator[FrescoPipeline]:
    with fresco_trt.FrescoPipeline.from_bundle(folder) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def source(folder: Path) -> Image.Image:
    found = example_source(open_bundle(folder))
    assert found is not None
    return found


def corner() -> Image.Image:
    """White over the upper left token of the draft."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (0, 0, 16, 16))
    return mask


def asked(pipe: FrescoPipeline, source: Image.Image, mask: Image.Image | None) -> Any:
    """The conditioning of an edit with both branches of guidance."""
    request = GenerateRequest(prompts=(PROMPT,), seeds=(3,), guidance=4.0, source=source, mask=mask)
    return pipe._conditioning(PROMPT, request)


def test_a_mixed_stage_is_guided_token_by_token(pipe: FrescoPipeline, source: Image.Image) -> None:
    given = asked(pipe, source, corner())
    assert given.negative is not None
    model, denoiser = load_transformer("random", FACTS), pipe._denoiser
    before: Tensor | None = None
    for step in denoiser.steps(given, 3):
        if step.stage and step.action == "full" and before is not None:
            break
        before = step.tokens.clone() if step.stage else None
    assert step.mixed is not None
    assert before is not None
    signature = QWEN.graphs.signature(
        FACTS, pipe.plan, step.stage, text_tokens=FACTS.text_tokens, feature=False
    )
    patchifier, mixed = denoiser.patchifier, step.mixed
    (reference,) = given.references
    behind = mixed.join(block_mean(reference, 2), reference, patchifier)
    own = {
        "latents": torch.cat([before, behind], dim=1),
        "timestep": torch.tensor([step.sigma]),
        **mixed_tables(patchifier, mixed, pipe.plan.positions, 1, mirrored=True),
    }
    graph = graph_from_signature(model, signature)
    velocities = []
    for branch in given.branches:
        named = {**own, **branch}
        with torch.no_grad():
            velocities.append(graph(*(named[spec.name] for spec in signature.inputs))[0])
    assert (velocities[0] - velocities[1]).abs().max() > 1e-4
    wanted = rescaled(velocities[0], velocities[1], 4.0)
    torch.testing.assert_close(step.velocity, wanted, atol=1e-5, rtol=1e-5)


def test_what_a_mask_leaves_alone_is_the_sources_own(
    pipe: FrescoPipeline, source: Image.Image
) -> None:
    result = pipe(PROMPT, image=source, mask=corner(), seed=3, record_steps=True)
    assert {step.stage for step in result.steps} == {1, 2}
    assert result.nfe == len(result.steps) == 16
    (drawn,), (mask,) = result.images, result.masks
    assert np.array_equal(np.asarray(mask), np.asarray(corner()))
    again = pipe(PROMPT, image=source, mask=corner(), seed=3).images[0]
    unguided = pipe(PROMPT, image=source, mask=corner(), seed=3, guidance=1.0).images[0]
    assert np.array_equal(np.asarray(again), np.asarray(drawn))
    assert not np.array_equal(np.asarray(unguided), np.asarray(drawn))
    denoiser = pipe._denoiser
    *_, last = denoiser.steps(asked(pipe, source, corner()), 3)
    assert last.edited is not None
    assert last.edited.nonzero().flatten().tolist() == [0]


def test_the_draft_says_what_is_edited_and_its_stage_has_room_for_it(
    pipe: FrescoPipeline, source: Image.Image
) -> None:
    """With a threshold that one token of the draft reaches, those around it are edited too."""
    denoiser, given = pipe._denoiser, asked(pipe, source, None)
    plan, edit, judge = pipe.plan, pipe.plan.edit, pipe._denoiser.judge
    assert edit is not None
    assert judge is not None
    grid = plan.stages[0].grid
    *_, end = (step for step in denoiser.steps(given, 3) if step.stage == 0)
    draft = estimate_x0(end.tokens, end.velocity, end.sigma_next)
    (reference,) = given.references
    scores = judge(denoiser.patchifier.unpack(draft, grid), block_mean(reference, 2))
    assert torch.isfinite(scores).all()
    highest, second = scores.topk(2).values.tolist()
    for threshold, touched in (((highest + second) / 2, True), (highest * 2, False)):
        asks = replace(denoiser, plan=replace(plan, edit=replace(edit, threshold=threshold)))
        *_, last = asks.steps(given, 3)
        if not touched:
            assert last.stage == 0
            continue
        row, column = divmod(int(scores.argmax()), grid.columns)
        wanted = {
            other
            for other in range(grid.tokens)
            if max(abs(other // grid.columns - row), abs(other % grid.columns - column)) <= 1
        }
        assert last.edited is not None
        assert set(last.edited.nonzero().flatten().tolist()) == wanted
        rooms = [*plan.refined[1:-1], grid.tokens]
        assert last.stage == 1 + next(i for i, room in enumerate(rooms) if room >= len(wanted))


def test_verification_and_warming_up_take_every_stage_that_may_follow(folder: Path) -> None:
    found = verify_bundle(folder)
    found.require()
    assert {error.engine for error in found.engines} == {
        f"stage{stage}.{action}" for stage in (1, 2, 3, 4) for action in ("full", "bypass")
    }
    with FrescoPipelines.from_bundles(folder, lazy=True) as pipes:
        (cost,) = pipes.warm_up()
    assert {stage.stage for stage in cost.stages if stage.first} == {1, 2, 3, 4}
