"""Laws of the editing bench's peers: all edited, none edited, and what lies between."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.editing_peers import EditingPeers
from bench.editing_rules import GAMMA, Course, RegionE, SpotEdit, dilated, settled
from bench.kept_tokens import KeptTransformer
from fresco_trt.errors import IncompatibleOptions
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.loading import random_transformer
from fresco_trt.models.flux.tokens import FluxPatchifier
from fresco_trt.models.registry import family_of, model_facts
from fresco_trt.pipelines.edit import example_source
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.pipelines.request import Asked
from fresco_trt.plan.cost import flops_of_step
from fresco_trt.plan.making import make_plan
from fresco_trt.run.positions import whole_tables
from fresco_trt.run.request import Conditioning

FACTS = replace(
    FLUX_TINY,
    hidden=64,
    heads=2,
    double_blocks=1,
    single_blocks=1,
    text_tokens=5,
    text_dim=32,
    references=1,
)
MODEL = (
    "flux-kontext:num_layers=1,num_single_layers=1,num_attention_heads=2,attention_head_dim=16,"
    "axes_dims_rope=4+6+6,joint_attention_dim=32,pooled_projection_dim=32,in_channels=16,vae_scale=4"
)
SIGMAS = make_plan(FACTS, stages=1, steps=28, size=(64, 64)).stages[0].sigmas
GRID = make_plan(FACTS, stages=1, size=(64, 64)).stages[0].grid
SQUARE = torch.zeros(GRID.rows, GRID.columns, dtype=torch.bool)
SQUARE[2:5, 3:7] = True
SHARP = {"atol": 1e-5, "rtol": 1e-4}


def course(model: Any) -> Course:
    """Of a random edit by a transformer; the decoder's features are the latents themselves."""
    draw = torch.Generator().manual_seed(3)
    noise, source = torch.randn(2, 1, GRID.tokens, FACTS.in_channels, generator=draw)
    patchifier = FluxPatchifier(FACTS, FACTS.text_tokens)
    given = Conditioning(
        inputs={
            "text": torch.randn(1, FACTS.text_tokens, FACTS.text_dim, generator=draw),
            "pooled": torch.randn(1, FACTS.pooled_dim, generator=draw),
            "guidance": torch.tensor([3.5]),
        }
    )
    tables = whole_tables(patchifier, GRID, 1)
    return Course(
        velocities=KeptTransformer(model).velocities(given, source, tables),
        noise=noise,
        sigmas=SIGMAS,
        grid=GRID,
        patchifier=patchifier,
        features=lambda latents: [latents],
    )


def plain(course: Course, steps: tuple[int, ...] = tuple(range(29))) -> Tensor:
    """The plain sampler's tokens, of all steps or of some that lead from one to the next."""
    tokens = course.noise
    for sigma, after in pairwise(SIGMAS[step] for step in steps):
        tokens = tokens + (after - sigma) * course.velocities.whole(tokens, sigma)
    return tokens


@pytest.fixture(scope="module")
def drawn() -> Course:
    return course(random_transformer(FACTS))


def blind(kind: str) -> Any:
    """A transformer of one block that does not know the time: what its source gives to attention
    is then the same at each step.
    """
    model: Any = random_transformer(FACTS)
    torch.nn.init.zeros_(model.time_text_embed.timestep_embedder.linear_2.weight)
    other = {"double": "single_transformer_blocks", "single": "transformer_blocks"}[kind]
    setattr(model, other, getattr(model, other)[:0])
    return model


# --- kept keys and values ---------------------------------------------------------------------


def test_some_tokens_move_as_they_do_among_all_in_whatever_order(drawn: Course) -> None:
    whole = drawn.velocities.whole(drawn.noise, 0.7)
    places = torch.randperm(GRID.tokens)[:20]
    some = drawn.velocities.some(drawn.noise[:, places], places, 0.7)
    torch.testing.assert_close(some, whole[:, places], **SHARP)
    elsewhere = drawn.velocities.some(drawn.noise[:, places], places.flip(0), 0.7)
    assert not torch.allclose(elsewhere, some, atol=1e-3)


@pytest.mark.parametrize("kind", ["double", "single"])
def test_all_tokens_anew_beside_a_kept_source_are_plain_attention(kind: str) -> None:
    here = course(blind(kind))
    whole = here.velocities.whole(here.noise, 0.7)
    here.velocities.whole(torch.zeros_like(here.noise), 0.9)
    every = torch.arange(GRID.tokens)
    torch.testing.assert_close(here.velocities.some(here.noise, every, 0.7), whole, **SHARP)


def test_what_is_kept_is_what_was_there_last(drawn: Course) -> None:
    places, others = torch.arange(30), torch.arange(30, GRID.tokens)
    drawn.velocities.whole(drawn.noise, 0.7)
    before = drawn.velocities.some(drawn.noise[:, places], places, 0.7)
    drawn.velocities.some(-drawn.noise[:, others], others, 0.7)
    after = drawn.velocities.some(drawn.noise[:, places], places, 0.7)
    assert not torch.allclose(before, after, atol=1e-3)


# --- SpotEdit ---------------------------------------------------------------------------------


def test_spotedit_that_edits_everything_is_the_plain_edit(drawn: Course) -> None:
    ended = SpotEdit(threshold=0.0).edit(drawn)
    assert ended.edited.all()
    torch.testing.assert_close(ended.tokens, plain(drawn), atol=1e-4, rtol=0)


def test_spotedit_that_edits_nothing_gives_the_source_back(drawn: Course) -> None:
    drawn.velocities.passes.clear()
    ended = SpotEdit(threshold=5.0).edit(drawn)
    assert not ended.edited.any()
    assert torch.equal(ended.tokens, drawn.velocities.source)
    assert sum(drawn.velocities.passes) == 6 * 2 * GRID.tokens  # four at first, and two resets


def test_spotedit_finds_a_square_and_leaves_the_rest_out() -> None:
    here = course(random_transformer(FACTS))
    source, square = here.velocities.source, SQUARE.flatten()

    def moving(tokens: Tensor, sigma: float, places: Tensor | None = None) -> Tensor:
        """As one with its back to the target: the source, its square turned round."""
        clean = torch.where(square[:, None], -source, source)
        seen.append(GRID.tokens if places is None else len(places))
        return (tokens - (clean if places is None else clean[:, places])) / sigma

    seen: list[int] = []
    here.velocities.whole = moving
    here.velocities.some = lambda tokens, places, sigma: moving(tokens, sigma, places)
    ended = SpotEdit().edit(here)
    assert torch.equal(ended.edited, square)
    beside = dilated(square, GRID, 1) & ~square
    assert torch.equal(ended.tokens[:, ~square & ~beside], source[:, ~square & ~beside])
    torch.testing.assert_close(ended.tokens[:, square], -source[:, square], atol=1e-4, rtol=0)
    assert seen.count(12) == 28 - 6
    assert seen.count(GRID.tokens) == 6
    wider = SpotEdit(dilation=1).edit(here)
    assert torch.equal(wider.edited, dilated(square, GRID, 1))


def test_tokens_beside_a_seam_are_blended() -> None:
    square = SQUARE.flatten()
    picture, source = torch.ones(1, GRID.tokens, 4), torch.zeros(1, GRID.tokens, 4)
    found = settled(picture, source, square, GRID, 0.8)[0, :, 0].reshape(GRID.rows, GRID.columns)
    expected = torch.zeros(GRID.rows, GRID.columns)
    expected[1:6, 2:8] = 0.2
    expected[2:5, 3:7] = 1.0
    torch.testing.assert_close(found, expected)


# --- RegionE ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["double", "single"])
def test_regione_that_edits_and_computes_everything_is_the_plain_edit(kind: str) -> None:
    here = course(blind(kind))
    ended = RegionE(threshold=2.0, cache_threshold=0.0).edit(here)
    assert ended.edited.all()
    torch.testing.assert_close(ended.tokens, plain(here), atol=1e-4, rtol=0)


def test_regione_that_edits_nothing_jumps(drawn: Course) -> None:
    drawn.velocities.passes.clear()
    ended = RegionE(threshold=-2.0).edit(drawn)
    assert not ended.edited.any()
    assert sum(drawn.velocities.passes) == 9 * 2 * GRID.tokens
    jumped = plain(drawn, (0, 1, 2, 3, 4, 5, 15, 26, 27, 28))
    torch.testing.assert_close(ended.tokens, jumped, atol=1e-4, rtol=0)


def test_regione_finds_a_square_with_a_rim_and_no_single_tokens() -> None:
    source = torch.randn(1, GRID.tokens, FACTS.in_channels)
    alone = SQUARE.clone()
    alone[7, 0] = True
    clean = torch.where(alone.flatten()[:, None], -source, source)
    found = RegionE().edited(clean, source, GRID).reshape(GRID.rows, GRID.columns)
    inner = SQUARE.clone()
    inner[[2, 4]] = False
    inner[:, [3, 6]] = False
    assert torch.equal(found.flatten(), dilated(inner.flatten(), GRID, 2))


def test_regione_predicts_while_the_decay_is_small(drawn: Course) -> None:
    none, every = RegionE(cache_threshold=0.0), RegionE(cache_threshold=1.0, gamma=(0.9,) * 27)
    regions = [step for step in range(28) if not none.is_whole(step)]
    assert none.computed(SIGMAS) == set(regions)
    assert every.computed(SIGMAS) == {6}
    between = RegionE().computed(SIGMAS)
    assert {6} < between < set(regions)
    drawn.velocities.passes.clear()
    RegionE(threshold=2.0).edit(drawn)
    assert sum(drawn.velocities.passes) == (9 * 2 + len(between)) * GRID.tokens


def test_regiones_decay_is_the_published_one_and_composes() -> None:
    decays = RegionE().decays(SIGMAS)
    gaps = [1.0 + after - sigma for sigma, after in pairwise(SIGMAS[:-1])]
    assert decays == pytest.approx([a * b for a, b in zip(GAMMA, gaps, strict=True)])
    longer = RegionE.at(14).decays(SIGMAS[::2])
    first = longer[0] / (1.0 + SIGMAS[2] - SIGMAS[0])
    assert first == pytest.approx(GAMMA[0] * GAMMA[1])
    assert len(longer) == 13


def test_fewer_steps_keep_every_kind_of_step() -> None:
    assert SpotEdit.at(28) == SpotEdit()
    assert RegionE.at(28) == RegionE()
    assert SpotEdit.at(14) == SpotEdit(steps=14, initial=2, resets=(7, 11))
    assert SpotEdit.at(7) == SpotEdit(steps=7, initial=1, resets=(3, 6))
    quarter = RegionE.at(7)
    assert (quarter.warmup, quarter.refreshes, quarter.post) == (2, (4,), 1)
    assert quarter.cache_threshold == pytest.approx(0.16)
    assert [step for step in range(7) if quarter.is_whole(step)] == [0, 1, 3, 6]
    RegionE.at(10)


@pytest.mark.parametrize(
    "settings",
    [
        lambda: SpotEdit(steps=29),
        lambda: SpotEdit(initial=0),
        lambda: SpotEdit(smoothing=1.5),
        lambda: RegionE(warmup=0),
        lambda: RegionE(post=0),
        lambda: RegionE(refreshes=(7,)),
        lambda: RegionE(refreshes=(12, 13)),
        lambda: RegionE(refreshes=(27,)),
        lambda: RegionE(gamma=GAMMA[1:]),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        settings()


# --- a model's edits --------------------------------------------------------------------------


def test_peers_draw_from_a_pipelines_own_noise_source_and_prompt(tmp_path: Path) -> None:
    facts = model_facts(MODEL)
    asked: Any = {"model": MODEL, "weights": "random", "backend": "eager", "size": (64, 64)}
    bundle = run(BuildRequest(out=tmp_path, stages=1, steps=28, **asked)).bundle
    with FrescoPipeline.from_bundle(bundle.folder) as pipe:
        source = example_source(pipe.bundle)
        plain = np.asarray(pipe("make it blue", image=source, seed=5).images[0])
        (picture,) = pipe.prepare(Asked(prompt="make it blue", image=source))
        decoder = family_of(facts).components.decoder(pipe.bundle.pipeline_folder)
    transformer = family_of(facts).weights.load("random", facts)
    peers = EditingPeers(facts, transformer, decoder, (64, 64))
    given = picture.conditioning
    everything = peers.draw(SpotEdit(threshold=0.0), given, 5)
    assert np.abs(everything.pixels.astype(int) - plain).max() <= 1
    assert everything.mask.shape == (64, 64)
    assert everything.mask.all()
    assert everything.flops == pytest.approx(28 * flops_of_step(facts, 64, references=64))
    assert 0 < everything.engine_seconds < everything.seconds - everything.judging
    nothing = peers.draw(SpotEdit(threshold=5.0), given, 5)
    assert torch.equal(nothing.latents, given.references[0])
    assert not nothing.mask.any()
    gamma = peers.fitted_gamma([given])
    faster = peers.draw(RegionE.at(7, gamma), given, 5)
    assert faster.flops < everything.flops / 4
    assert faster.judging == 0
    assert np.array_equal(peers.draw(SpotEdit(threshold=0.0), given, 5).pixels, everything.pixels)


def test_a_model_that_does_not_edit_has_no_peers() -> None:
    with pytest.raises(IncompatibleOptions, match="--model flux-tiny"):
        EditingPeers(FLUX_TINY, None, cast("Any", None), (64, 64))
