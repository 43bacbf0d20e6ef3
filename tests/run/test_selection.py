"""Laws of the choice of tokens: exact counts, ties, and what each rule may and may not see."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fresco_trt.plan.grid import Grid
from fresco_trt.plan.stages import SELECTIONS, TokenRefinement
from fresco_trt.run.noise import fresh_generator
from fresco_trt.run.selection import RULES, Window, choose, even, score, select
from fresco_trt.run.transition import estimate_x0, renoise

ROWS, COLUMNS, DEPTH, STEPS = 8, 12, 16, 3
TOKENS = ROWS * COLUMNS
GRID = Grid(height=2 * ROWS, width=2 * COLUMNS, scale=0.5)

SCORES = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf])


def window_of(clean: torch.Tensor, latents: torch.Tensor | None = None) -> Window:
    latents = torch.randn_like(clean) if latents is None else latents
    return Window(rows=ROWS, columns=COLUMNS, latents=latents, clean=clean)


def a_window() -> Window:
    return window_of(torch.randn(STEPS, TOKENS, DEPTH))


def picture(scores: torch.Tensor) -> torch.Tensor:
    return scores.reshape(ROWS, COLUMNS)


def everyone() -> torch.Tensor:
    return torch.ones(TOKENS, dtype=torch.bool)


# --- choice -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=40), st.data())
def test_the_highest_candidates_are_chosen_and_ties_go_to_the_lower_index(
    tokens: list[tuple[float, bool]], data: Any
) -> None:
    candidates = [index for index, (_, free) in enumerate(tokens) if free]
    count = data.draw(st.integers(0, len(candidates)))
    best = sorted(candidates, key=lambda index: (-tokens[index][0], index))[:count]
    scores, mask = torch.tensor([s for s, _ in tokens]), torch.tensor([c for _, c in tokens])
    assert choose(scores, mask, count).tolist() == sorted(best)


@pytest.mark.parametrize("count", [1, 17, TOKENS])
def test_equal_scores_choose_the_first_tokens(count: int) -> None:
    chosen = choose(torch.zeros(TOKENS), everyone(), count)
    assert chosen.tolist() == list(range(count))
    assert chosen.dtype == torch.int64


def test_scores_that_are_no_numbers_choose_no_token_twice() -> None:
    mask = everyone()
    mask[::2] = False
    chosen = choose(torch.full((TOKENS,), math.nan), mask, TOKENS // 2)
    assert chosen.tolist() == list(range(1, TOKENS, 2))


@pytest.mark.parametrize("rule", SELECTIONS)
@pytest.mark.parametrize("count", [1, 31, TOKENS - 1])
def test_every_rule_takes_exactly_its_count(rule: Any, count: int) -> None:
    refinement = TokenRefinement(rule=rule, count=count)
    assert select([refinement], a_window(), everyone(), fresh_generator(1)).sum() == count


@pytest.mark.parametrize(("first", "second"), [*itertools.product(SELECTIONS, SELECTIONS)])
def test_refinements_in_turn_choose_among_what_is_left(first: Any, second: Any) -> None:
    window, barred = a_window(), torch.arange(TOKENS) % 7 == 0
    rules = [TokenRefinement(rule=first, count=20), TokenRefinement(rule=second, count=9)]
    both = select(rules, window, ~barred, fresh_generator(1))
    generator = fresh_generator(1)
    one = choose(score(first, window, generator), ~barred, 20)
    left = (~barred).index_fill(0, one, False)
    two = choose(score(second, window, generator), left, 9)
    assert both.nonzero().flatten().tolist() == sorted([*one.tolist(), *two.tolist()])
    assert not (both & barred).any()


def test_a_mask_that_is_given_is_kept() -> None:
    mask = everyone()
    select([TokenRefinement(rule="even", count=5)], a_window(), mask, None)
    assert mask.all()


# --- latent frames ----------------------------------------------------------------------------

FRAMES = 3


def a_clip() -> Window:
    """A window of which the second frame alone changes its mind, at other places than the noise."""
    clean = 0.01 * torch.randn(STEPS, FRAMES, TOKENS, DEPTH)
    clean[:, 1, : TOKENS // 4] *= 100
    flat = clean.reshape(STEPS, FRAMES * TOKENS, DEPTH)
    return Window(rows=ROWS, columns=COLUMNS, frames=FRAMES, latents=flat, clean=flat)


@pytest.mark.parametrize("rule", SELECTIONS)
@pytest.mark.parametrize("places", [1, 30, TOKENS - 1])
def test_tubes_are_the_same_places_in_every_frame(rule: Any, places: int) -> None:
    """And in turn, of what the first left."""
    first = TokenRefinement(rule=rule, count=places * FRAMES, tube=True)
    both = [TokenRefinement(rule=rule, count=FRAMES, tube=True)] * 2
    for refinements in ([first], both):
        everything = everyone().repeat(FRAMES)
        taken = select(refinements, a_clip(), everything, fresh_generator(1)).reshape(FRAMES, -1)
        assert (taken == taken[0]).all()
        assert taken.sum() == sum(each.count for each in refinements)


def test_tubes_are_where_the_mean_over_the_frames_says_and_others_where_each_frame_does() -> None:
    window, count = a_clip(), FRAMES * TOKENS // 4
    everything = everyone().repeat(FRAMES)
    free, tube = (
        select([TokenRefinement(rule="changing", count=count, tube=tube)], window, everything, None)
        for tube in (False, True)
    )
    assert tube.reshape(FRAMES, -1)[:, : TOKENS // 4].all()
    by_frame = free.reshape(FRAMES, -1).sum(dim=1)
    assert by_frame[1] > max(by_frame[0], by_frame[2])
    assert free.reshape(FRAMES, -1)[1, : TOKENS // 4].all()


def test_a_tube_takes_no_place_that_a_frame_has_lost() -> None:
    left = everyone().repeat(FRAMES)
    left[5], left[TOKENS + 9] = False, False
    count = (TOKENS - 2) * FRAMES
    taken = select([TokenRefinement(rule="edge", count=count, tube=True)], a_clip(), left, None)
    assert not taken.reshape(FRAMES, -1)[:, [5, 9]].any()


# --- rules that look at the steps -------------------------------------------------------------


@pytest.mark.parametrize("rule", sorted(RULES))
def test_scores_are_one_number_a_token(rule: Any) -> None:
    scores = score(rule, a_window(), None)
    assert (scores.shape, scores.dtype) == ((TOKENS,), torch.float32)


@pytest.mark.parametrize(("rule", "reads"), [("", "clean"), ("-latent", "latents")])
def test_what_varied_least_is_converged_and_what_varied_most_is_changing(
    rule: str, reads: str
) -> None:
    """Each token swings between its own two values; the unbiased variance of (a, -a, a) is 4a^2/3.

    The other recording must not matter.
    """
    swing = torch.rand(TOKENS, 1) + 0.1
    values = torch.tensor([1.0, -1.0, 1.0]).reshape(3, 1, 1) * swing.expand(TOKENS, DEPTH)
    still = torch.zeros_like(values)
    pair = {"clean": still, "latents": still, reads: values}
    window = Window(rows=ROWS, columns=COLUMNS, **pair)
    changing: Any = f"changing{rule}"
    converged: Any = f"converged{rule}"
    torch.testing.assert_close(score(changing, window, None), 4 / 3 * swing[:, 0].square())
    assert torch.equal(score(converged, window, None), -score(changing, window, None))


def test_the_clean_variance_does_not_see_the_path() -> None:
    """Two runs, of other noise and other sigmas, through the same clean estimates: equal scores.

    The published rule on the latents sees the path, and mostly that.
    """
    estimates = torch.randn(1, TOKENS, DEPTH) + 0.1 * torch.randn(STEPS, TOKENS, DEPTH)
    expected = score("converged", window_of(estimates), None)
    published = []
    for sigmas, seed in (((0.9, 0.8, 0.7), 1), ((0.6, 0.3, 0.1), 2)):
        noise = torch.randn(1, TOKENS, DEPTH, generator=torch.Generator().manual_seed(seed))
        window = Window.empty(STEPS, GRID, noise)
        for step, (sigma, clean) in enumerate(zip(sigmas, estimates, strict=True)):
            x, v = renoise(clean, noise, sigma), noise - clean
            window.record_(STEPS - 1 - step, x, estimate_x0(x, v, sigma))
        torch.testing.assert_close(score("converged", window, None), expected, rtol=1e-3, atol=1e-6)
        published.append(score("converged-latent", window, None))
    assert (published[0] - published[1]).abs().max() > expected.abs().max()


@pytest.mark.parametrize("shift", [(1, 0), (0, 3), (2, 1)])
def test_edges_move_with_the_picture(shift: tuple[int, int]) -> None:
    inside = torch.zeros(ROWS, COLUMNS, DEPTH)
    inside[2:5, 3:7] = torch.randn(3, 4, DEPTH)
    moved = inside.roll(shift, dims=(0, 1))
    scores, expected = (
        picture(score("edge", window_of(each.reshape(1, TOKENS, DEPTH)), None))
        for each in (moved, inside)
    )
    assert scores.max() > 0
    assert torch.equal(scores, expected.roll(shift, dims=(0, 1)))


def test_edges_are_where_the_last_clean_estimate_steps() -> None:
    """A step between two columns scores on its near side alone, with its height; a constant not."""
    step = torch.zeros(ROWS, COLUMNS, 4)
    step[:, 5:] = 1.5
    flat = torch.full((1, TOKENS, 4), 7.0)
    clean = torch.cat([torch.randn(1, TOKENS, 4), step.reshape(1, TOKENS, 4)])
    scores = picture(score("edge", window_of(clean), None))
    assert torch.equal(scores[:, 4], torch.full((ROWS,), 3.0))
    assert scores.count_nonzero() == ROWS
    assert not score("edge", window_of(flat), None).any()


def test_a_window_holds_the_last_steps_oldest_first() -> None:
    latents, clean = torch.randn(2, STEPS, 1, TOKENS, DEPTH)
    window = Window.empty(STEPS, GRID, latents[0])
    for step in range(STEPS):
        window.record_(STEPS - 1 - step, latents[step], clean[step])
    assert window.steps == STEPS
    assert torch.equal(window.latents, latents[:, 0])
    assert torch.equal(window.clean, clean[:, 0])


# --- rules that do not ------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (16, 8), (4, 16), (1, 8), (32, 32)])
def test_every_part_of_the_even_order_is_spread_over_both_axes(rows: int, columns: int) -> None:
    """Aligned square blocks of any power of two hold equal shares of the first k, for every k."""
    empty = torch.empty(1, rows * columns, 4)
    window = Window(rows=rows, columns=columns, latents=empty, clean=empty)
    order = even(window).argsort(descending=True)
    taken = torch.zeros(rows, columns)
    for index in order:
        taken[index // columns, index % columns] += 1
        side = 1
        while side <= min(rows, columns):
            blocks = taken.reshape(rows // side, side, columns // side, side).sum(dim=(1, 3))
            assert blocks.max() - blocks.min() <= 1
            side *= 2
    assert taken.eq(1).all()


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4, 0.5, 0.75])
def test_an_even_choice_has_its_share_in_every_quarter_of_any_grid(share: float) -> None:
    count = round(share * TOKENS)
    taken = select([TokenRefinement(rule="even", count=count)], a_window(), everyone(), None)
    for axis in (0, 1):
        for part in picture(taken.float()).chunk(4, dim=axis):
            assert part.mean() == pytest.approx(count / TOKENS, abs=0.13)


def test_even_refinements_in_turn_are_one_of_both() -> None:
    one, two, both = (TokenRefinement(rule="even", count=count) for count in (17, 14, 31))
    window = a_window()
    in_turn = select([one, two], window, everyone(), None)
    assert torch.equal(in_turn, select([both], window, everyone(), None))


@pytest.mark.parametrize("rule", ["even", "random"])
def test_even_and_random_do_not_look_at_the_steps(rule: Any) -> None:
    one, other = (score(rule, a_window(), fresh_generator(3)) for _ in range(2))
    assert torch.equal(one, other)


def test_a_random_choice_is_the_seeds_and_fair() -> None:
    refinement, window = TokenRefinement(rule="random", count=24), a_window()
    times = torch.zeros(TOKENS)
    for seed in range(400):
        first, same = (
            select([refinement], window, everyone(), fresh_generator(seed)) for _ in range(2)
        )
        assert torch.equal(first, same)
        times += first
    # 400 draws at 1/4: standard deviation 8.7; five of them, for the worst of 96 tokens.
    assert (times - 100).abs().max() < 43


def test_a_random_choice_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="without a generator"):
        score("random", a_window(), None)
