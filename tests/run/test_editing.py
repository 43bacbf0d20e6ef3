"""Laws of selective edits: what they touch, which stage that takes, and what stays the source's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fresco_trt.backends.fake import FakeRunner
from fresco_trt.errors import NonFiniteValues
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.signatures import stage_signature
from fresco_trt.models.flux.tokens import FluxPatchifier
from fresco_trt.plan.editing import EditPlan
from fresco_trt.plan.making import plan_from_preset
from fresco_trt.plan.presets import Preset
from fresco_trt.plan.refinement import EDITED
from fresco_trt.plan.stages import StagePlan
from fresco_trt.run.denoise import Denoiser
from fresco_trt.run.editing import (
    cosine_discrepancy,
    covered,
    decide,
    decide_by_mask,
    feature_discrepancy,
    keep_source,
    latent_discrepancy,
)
from fresco_trt.run.positions import mixed_tables, whole_tables
from fresco_trt.run.resample import block_mean
from fresco_trt.run.sampler import Conditioning, Step, engine_name
from fresco_trt.run.transition import apply_transition

FACTS = replace(FLUX_TINY, text_tokens=3, references=1, default_steps=4)
PATCHIFIER = FluxPatchifier(FACTS, FACTS.text_tokens)
EDIT = EditPlan(discrepancy="latent", threshold=0.5, dilation=0, coverage=0, blend=0)
MARK = 3.0


def plan_of(edit: EditPlan = EDIT, **changes: Any) -> StagePlan:
    """A draft of 8x8 tokens; then 16 of them refined, or 32, or all."""
    preset = Preset(
        steps=(2, 2, 2, 2),
        switch=(0.0, 0.0, 0.0),
        restart=(0.7, 0.7, 0.7),
        refine=(((EDITED, 0.25),), ((EDITED, 0.25),), ()),
        edit=edit,
        **changes,
    )
    return plan_from_preset(FACTS, preset, size=(128, 128))


PLAN = plan_of()
DRAFT, FINE = PLAN.stages[0].grid, PLAN.stages[-1].grid


def source_of(rows: int, columns: int) -> Tensor:
    """Latents of the full grid, marked over so many tokens of the draft's, from the upper left."""
    generator = torch.Generator().manual_seed(3)
    source = torch.randn(1, FACTS.latent_channels, FINE.height, FINE.width, generator=generator)
    side = FINE.height // DRAFT.rows
    source[:, 0] = 0.0
    source[:, 0, : rows * side, : columns * side] = MARK
    return source


def changed(source: Tensor) -> Tensor:
    """What the edit makes of latents: their marks disappear."""
    edited = source.clone()
    edited[:, 0] = torch.where(source[:, 0] > MARK / 2, -MARK, source[:, 0])
    return edited


def towards_change(named: Mapping[str, Tensor]) -> Tensor:
    """The exact velocity to the changed source, token by token: a token holds 2x2 latent pixels, of
    which the first channel's are marked or not.
    """
    latents = named["latents"]
    tokens, source = latents.chunk(2, dim=1)
    clean = source.clone()
    clean[..., :4] = torch.where(source[..., :4] > MARK / 2, -MARK, source[..., :4])
    return (tokens - clean) / named["timestep"]


def drawn(
    source: Tensor,
    plan: StagePlan = PLAN,
    engine: Callable[[Mapping[str, Tensor]], Tensor] = towards_change,
    mask: Tensor | None = None,
) -> tuple[list[Step], Denoiser]:
    """Every step of an edit, its tokens kept, by engines in closed form."""
    runners = {}
    for index in range(len(plan.stages)):
        signature = stage_signature(FACTS, plan, index, text_tokens=FACTS.text_tokens)
        runner = FakeRunner(signature, lambda named: {"velocity": engine(named)})
        runners[engine_name(index, "full")] = runner.__enter__()
    inputs = {
        "text": torch.zeros(1, FACTS.text_tokens, FACTS.text_dim),
        "pooled": torch.zeros(1, FACTS.pooled_dim),
        "guidance": torch.tensor([2.5]),
    }
    conditioning = Conditioning(inputs=inputs, references=(source,), mask=mask)
    denoiser = Denoiser.of(
        FACTS, plan, runners, text_tokens=FACTS.text_tokens, features=lambda latents: [latents]
    )
    steps = [replace(step, tokens=step.tokens.clone()) for step in denoiser.steps(conditioning, 5)]
    return steps, denoiser


# --- which stage follows ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "stage"), [(2, 3, 1), (4, 4, 1), (4, 5, 2), (4, 8, 2), (5, 8, 3), (8, 8, 3)]
)
def test_the_first_stage_that_has_room_draws_exactly_what_the_edit_touches(
    rows: int, columns: int, stage: int
) -> None:
    source = source_of(rows, columns)
    steps, denoiser = drawn(source)
    assert [step.stage for step in steps] == [0, 0, stage, stage]
    assert [step.step for step in steps] == [0, 1, 2, 3]
    assert {step.steps_total for step in steps} == {4}
    last = steps[-1]
    assert last.edited is not None
    expected = torch.zeros(DRAFT.rows, DRAFT.columns, dtype=torch.bool)
    expected[:rows, :columns] = True
    assert torch.equal(last.edited, expected.flatten())
    latents = keep_source(denoiser.latents(last), source, last.edited, DRAFT, 0)
    assert torch.allclose(latents, changed(source), atol=1e-5)
    side = FINE.height // DRAFT.rows
    outside = torch.ones(FINE.height, FINE.width, dtype=torch.bool)
    outside[: rows * side, : columns * side] = False
    assert torch.equal(latents[..., outside], source[..., outside])


def test_an_edit_that_touches_nothing_ends_with_its_draft() -> None:
    steps, _ = drawn(source_of(0, 0))
    assert [step.stage for step in steps] == [0, 0]
    assert steps[-1].edited is None


def test_a_mask_says_what_is_touched_in_place_of_the_draft() -> None:
    mask = torch.zeros(1, 1, FINE.height, FINE.width, dtype=torch.bool)
    mask[..., -1, -1] = True
    steps, _ = drawn(source_of(8, 8), mask=mask)
    last = steps[-1]
    assert last.stage == 1
    assert last.edited is not None
    assert last.edited.nonzero().flatten().tolist() == [DRAFT.tokens - 1]


def test_the_whole_grid_is_reached_as_a_plan_without_an_edit_reaches_it() -> None:
    """Bit for bit the two stages by themselves: the draft, and all of it anew."""
    source = source_of(8, 8)
    steps, denoiser = drawn(source)
    request = denoiser.request(
        Conditioning(
            inputs={
                "text": torch.zeros(1, FACTS.text_tokens, FACTS.text_dim),
                "pooled": torch.zeros(1, FACTS.pooled_dim),
                "guidance": torch.tensor([2.5]),
            },
            references=(source,),
        ),
        5,
    )
    draft, velocity = steps[1].tokens, torch.zeros_like(steps[1].tokens)
    entered = apply_transition(
        PLAN.transitions[0],
        PATCHIFIER.unpack(draft, DRAFT),
        PATCHIFIER.unpack(velocity, DRAFT),
        request.pyramid,
        scale=DRAFT.scale,
        scale_next=FINE.scale,
    )
    x, clean = PATCHIFIER.pack(entered), PATCHIFIER.pack(changed(source))
    stage = PLAN.stages[-1]
    for sigma, sigma_next in zip(stage.sigmas[:-1], stage.sigmas[1:], strict=True):
        x = x + (sigma_next - sigma) * ((x - clean) / sigma)
    assert torch.allclose(steps[-1].tokens, x, atol=1e-5)


def test_a_mixed_stages_source_lies_where_its_target_does() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(named: Mapping[str, Tensor]) -> Tensor:
        seen.append((named["latents"].clone(), named["rope_cos"].clone()))
        return towards_change(named)

    source = source_of(4, 4)
    steps, _ = drawn(source, engine=watch)
    mixed = steps[-1].mixed
    assert mixed is not None
    latents, cosines = seen[-1]
    tokens = latents.shape[1] // 2
    mirrored = mixed.join(block_mean(source, 2), source, PATCHIFIER)
    assert torch.equal(latents[:, tokens:], mirrored)
    tables = mixed_tables(PATCHIFIER, mixed, "fine", 1, mirrored=True)
    assert torch.equal(cosines, tables["rope_cos"])
    target, reference = tables["rope_cos"][FACTS.text_tokens :].split(tokens)
    axis = FACTS.rope_axes[0]
    assert torch.equal(target[:, axis:], reference[:, axis:]), "the same rows and columns"
    assert not torch.equal(target[:, :axis], reference[:, :axis]), "and another picture"


def test_a_fine_source_is_whole_in_every_stage() -> None:
    plan, source = plan_of(references="fine"), source_of(4, 4)
    seen: list[Mapping[str, Tensor]] = []

    def towards_source(named: Mapping[str, Tensor]) -> Tensor:
        seen.append(dict(named))
        tokens = named["latents"].shape[1] - FINE.tokens
        target = named["latents"][:, :tokens]
        return (target - 2.0 * MARK) / named["timestep"]

    steps, _ = drawn(source, plan, towards_source)
    assert [step.stage for step in steps] == [0, 0, 3, 3], "everything differs from the source"
    whole = PATCHIFIER.pack(source)
    for named, step in zip(seen, steps, strict=True):
        own = plan.tokens[step.stage]
        assert torch.equal(named["latents"][:, own:], whole)
    tables = whole_tables(PATCHIFIER, DRAFT, 1, FINE)
    assert torch.equal(seen[0]["rope_cos"], tables["rope_cos"])


def test_a_fine_source_of_a_mixed_stage_is_on_its_fine_grid() -> None:
    plan, source = plan_of(references="fine"), source_of(4, 4)
    seen: list[Mapping[str, Tensor]] = []

    def towards_change_of_whole(named: Mapping[str, Tensor]) -> Tensor:
        seen.append(dict(named))
        latents = named["latents"]
        tokens, _ = latents.split([latents.shape[1] - FINE.tokens, FINE.tokens], dim=1)
        if tokens.shape[1] == DRAFT.tokens:
            clean = PATCHIFIER.pack(block_mean(changed(source), 2))
            return (tokens - clean) / named["timestep"]
        return torch.zeros_like(tokens)

    steps, _ = drawn(source, plan, towards_change_of_whole)
    mixed = steps[-1].mixed
    assert mixed is not None
    tables = mixed_tables(PATCHIFIER, mixed, "fine", 1)
    assert torch.equal(seen[-1]["rope_cos"], tables["rope_cos"])
    assert torch.equal(seen[-1]["latents"][:, -FINE.tokens :], PATCHIFIER.pack(source))


def test_what_room_is_left_goes_to_what_differs_most() -> None:
    scores = torch.linspace(0.0, 0.4, DRAFT.tokens)
    scores[0] = 0.9
    decision = decide(PLAN, scores)
    assert decision.stage == 1
    assert decision.refined is not None
    room = PLAN.refined[1]
    most = [0, *range(DRAFT.tokens - room + 1, DRAFT.tokens)]
    assert decision.refined.nonzero().flatten().tolist() == most
    assert decision.edited.nonzero().flatten().tolist() == [0]


@settings(deadline=None, max_examples=50, database=None)
@given(seed=st.integers(0, 1000), threshold=st.floats(0.05, 2.0), dilation=st.integers(0, 2))
def test_a_decision_has_room_for_all_it_found(seed: int, threshold: float, dilation: int) -> None:
    edit = replace(EDIT, threshold=threshold, dilation=dilation, coverage=4)
    plan = replace(PLAN, edit=edit)
    scores = torch.rand(DRAFT.tokens, generator=torch.Generator().manual_seed(seed)) ** 4
    decision = decide(plan, scores)
    assert bool((scores >= threshold).logical_not().logical_or(decision.edited).all())
    if decision.stage is None:
        assert not bool((scores >= threshold).any())
        return
    if decision.refined is None:
        assert decision.stage == len(plan.stages) - 1
        return
    assert int(decision.refined.sum()) == plan.refined[decision.stage]
    wanted = decision.edited.logical_or(covered(plan))
    assert bool(wanted.logical_not().logical_or(decision.refined).all())
    fewer = plan.refined[decision.stage - 1]
    assert int(wanted.sum()) > fewer, "a smaller stage had room"


def test_dilation_takes_the_tokens_around() -> None:
    scores = torch.zeros(DRAFT.rows, DRAFT.columns)
    scores[3, 3] = 1.0
    edited = decide(plan_of(replace(EDIT, dilation=1)), scores.flatten()).edited
    assert edited.reshape(8, 8).nonzero().tolist() == [[y, x] for y in (2, 3, 4) for x in (2, 3, 4)]


def test_coverage_is_even_and_not_an_edit() -> None:
    plan = plan_of(replace(EDIT, coverage=4))
    places = covered(plan).reshape(8, 8)
    assert places.nonzero().tolist() == [[2, 2], [2, 6], [6, 2], [6, 6]]
    scores = torch.zeros(DRAFT.tokens)
    scores[0] = 1.0
    decision = decide(plan, scores)
    assert decision.refined is not None
    assert bool(decision.refined[places.flatten()].all())
    assert int(decision.edited.sum()) == 1
    assert decide(plan, torch.zeros(DRAFT.tokens)).stage is None


def test_scores_that_are_no_numbers_are_no_edit_of_nothing() -> None:
    with pytest.raises(NonFiniteValues):
        decide(PLAN, torch.full((DRAFT.tokens,), torch.nan))


def test_a_mask_takes_every_token_that_it_touches_and_fills_with_what_is_near() -> None:
    mask = torch.zeros(1, 1, FINE.height, FINE.width, dtype=torch.bool)
    mask[..., 0, 0] = True
    decision = decide_by_mask(PLAN, mask)
    assert decision.edited.nonzero().flatten().tolist() == [0]
    assert decision.refined is not None
    refined = decision.refined.reshape(8, 8)
    assert bool(refined[:3, :3].all())


# --- how much differs -------------------------------------------------------------------------


def test_features_are_compared_by_direction_alone() -> None:
    one = torch.zeros(1, 2, DRAFT.height, DRAFT.width)
    one[:, 0] = 1.0
    other = torch.zeros_like(one)
    other[:, 1] = 5.0
    assert feature_discrepancy([one], [3 * one], DRAFT).abs().max() < 1e-6
    assert torch.allclose(feature_discrepancy([one], [other], DRAFT), torch.tensor(2.0))
    assert torch.allclose(feature_discrepancy([one], [-one], DRAFT), torch.tensor(4.0))
    half = feature_discrepancy([one, one], [one, other], DRAFT)
    assert torch.allclose(half, torch.tensor(1.0)), "the mean over depths"


def test_a_deeper_map_of_another_size_is_brought_to_the_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    deep = torch.randn(1, 6, 2 * DRAFT.height, 2 * DRAFT.width, generator=generator)
    away = deep.clone()
    away[..., : DRAFT.height, : DRAFT.width] *= -1
    scores = feature_discrepancy([deep], [away], DRAFT).reshape(8, 8)
    assert torch.allclose(scores[:3, :3], torch.tensor(4.0))
    assert scores[5:].abs().max() < 1e-6


def test_latents_and_cosines_differ_where_tokens_do() -> None:
    source = block_mean(source_of(2, 2), 2)
    scores = latent_discrepancy(changed(source), source, DRAFT).reshape(8, 8)
    assert torch.allclose(scores[:2, :2], torch.tensor((2 * MARK) ** 2 / FACTS.latent_channels))
    assert not scores[2:].any()
    tokens = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    turned = torch.tensor([[[2.0, 0.0], [-1.0, -1.0]]])
    assert torch.allclose(cosine_discrepancy(tokens, turned), torch.tensor([0.0, 2.0]))


# --- what is kept -----------------------------------------------------------------------------


@pytest.mark.parametrize("blend", [0, 1, 3])
def test_away_from_a_seam_each_is_exactly_itself(blend: int) -> None:
    source = source_of(0, 0)
    picture = source + 10.0
    edited = torch.zeros(DRAFT.rows, DRAFT.columns, dtype=torch.bool)
    edited[:, :4] = True
    kept = keep_source(picture, source, edited.flatten(), DRAFT, blend)
    seam = FINE.width // 2
    assert torch.equal(kept[..., : seam - blend], picture[..., : seam - blend])
    assert torch.equal(kept[..., seam + blend :], source[..., seam + blend :])
    across = (kept - source)[0, 1, 5, seam - blend : seam + blend]
    assert bool((across.diff() < 0).all()), "and falls from one to the other"


# --- what is refused --------------------------------------------------------------------------


def test_an_edit_without_what_it_needs_is_refused_before_any_engine_runs() -> None:
    source = source_of(2, 2)
    with pytest.raises(ValueError, match="mask of"):
        drawn(source, mask=torch.ones(1, 1, 4, 4, dtype=torch.bool))
    plain = plan_from_preset(FACTS, Preset(steps=(2,)), size=(128, 128))
    mask = torch.ones(1, 1, FINE.height, FINE.width, dtype=torch.bool)
    with pytest.raises(ValueError, match="draws every token"):
        drawn(source, plain, mask=mask)
    with pytest.raises(ValueError, match="draws every token"):
        decide(plain, torch.zeros(DRAFT.tokens))


# --- looked at again --------------------------------------------------------------------------

AGAIN = plan_of(replace(EDIT, recheck=1))


def spreading(named: Mapping[str, Tensor]) -> Tensor:
    """An engine that sees only the strong marks in the draft, and all of them after it."""
    latents, sigma = named["latents"], named["timestep"]
    tokens, source = latents.chunk(2, dim=1)
    clean = source.clone()
    weakest = 1.5 * MARK if tokens.shape[1] == DRAFT.tokens else MARK / 2
    clean[..., :4] = torch.where(source[..., :4] > weakest, -MARK, source[..., :4])
    return (tokens - clean) / sigma


def marked(rows: int, strong: int) -> Tensor:
    """A source with marks over ``rows`` rows of tokens, the first ``strong`` of them twice so."""
    source = source_of(rows, 8)
    side = FINE.height // DRAFT.rows
    source[:, 0, : strong * side] *= 2
    return source


@pytest.mark.parametrize(("rows", "stages"), [(1, [1, 1]), (3, [1, 2]), (8, [1, 3])])
def test_what_differs_only_later_is_edited_too(rows: int, stages: list[int]) -> None:
    source = marked(rows, 1)
    steps, denoiser = drawn(source, AGAIN, spreading)
    assert [step.stage for step in steps] == [0, 0, *stages]
    assert [step.step for step in steps] == [0, 1, 2, 3]
    edited = steps[-1].edited
    assert edited is not None
    assert edited.reshape(8, 8).any(dim=1).tolist() == [row < rows for row in range(8)]
    assert torch.allclose(denoiser.latents(steps[-1]), changed(source), atol=1e-4) or rows < 8
    once, _ = drawn(source, PLAN, spreading)
    assert [step.stage for step in once] == [0, 0, 1, 1]


def test_what_is_expanded_already_goes_on_from_where_it_is() -> None:
    """A larger stage at the same step: the tokens that were fine are not noised anew."""
    source = marked(3, 1)
    steps, _ = drawn(source, AGAIN, spreading)
    before, after = steps[2], steps[3]
    assert before.mixed is not None
    assert after.mixed is not None
    entered = after.tokens - (after.sigma_next - after.sigma) * after.velocity
    was = dict(
        zip(
            before.mixed.children.tolist(),
            before.tokens[0, len(before.mixed.kept) :],
            strict=True,
        )
    )
    now = dict(zip(after.mixed.children.tolist(), entered[0, len(after.mixed.kept) :], strict=True))
    assert was.keys() < now.keys()
    for place, token in was.items():
        assert torch.allclose(now[place], token, atol=1e-5)


def test_a_mask_is_not_looked_at_again() -> None:
    mask = torch.zeros(1, 1, FINE.height, FINE.width, dtype=torch.bool)
    mask[..., 0, 0] = True
    steps, _ = drawn(source_of(8, 8), AGAIN, mask=mask)
    assert [step.stage for step in steps] == [0, 0, 1, 1]
