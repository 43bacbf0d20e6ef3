"""The judge of facts: one that sees everything is always right, and training goes on."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from fresco_trt.bench.quality import frechet_distance
from fresco_trt.errors import IncompatibleOptions, QualityTooLow
from tests.training.discs import Discs
from training.scenes import judge_training
from training.scenes.batches import Recipe, SceneBatches
from training.scenes.captions import KINDS, Captioned, is_true
from training.scenes.judge import PAINTS, RARER, WHOLE, FactJudge, Seen, contrary, score, verdicts
from training.scenes.judge_training import (
    JudgeOptions,
    JudgeRun,
    disturbed,
    fact_loss,
    held_out_accuracy,
    load_judge,
    train_judge,
)
from training.scenes.objects import OBJECTS
from training.scenes.scene import relations_of

TINY = JudgeOptions(objects=8, side=32, batch=4, minutes=1e-9)
CELLS = 8
CERTAIN = 12.0


@cache
def scenes(names: tuple[str, ...] = tuple(OBJECTS), count: int = 60) -> tuple[Captioned, ...]:
    return tuple(Recipe(seed=2, names=names, detail=1.0).batch((count, 64, 64), 0))


def truth(drawn: tuple[Captioned, ...]) -> Seen:
    """What a judge sees that is sure of everything, and right."""
    names, count = list(OBJECTS), len(drawn)
    heat = torch.full((count, len(names), CELLS, CELLS), -CERTAIN)
    box = torch.zeros(count, 3, CELLS, CELLS)
    paint = torch.zeros(count, len(PAINTS), CELLS, CELLS)
    hidden = torch.full((count, 1, CELLS, CELLS), -CERTAIN)
    whole = {kind: torch.zeros(count, len(values)) for kind, values in WHOLE.items()}
    for i, each in enumerate(drawn):
        scene = each.scene
        for item in scene.items:
            cell = int(item.y * CELLS), int(item.x * CELLS)
            heat[(i, names.index(item.name), *cell)] = CERTAIN
            inside = (item.x * CELLS % 1, item.y * CELLS % 1, item.side)
            box[(i, slice(None), *cell)] = torch.tensor(inside).logit(1e-5)
            paint[(i, PAINTS.index(item.paint), *cell)] = CERTAIN
            behind = [b for _, r, b in relations_of(scene) if r == "in front of"]
            hidden[(i, 0, *cell)] = CERTAIN if item.name in behind else -CERTAIN
        there = (scene.backdrop.texture, scene.backdrop.colour, scene.light, scene.style)
        for (kind, values), value in zip(WHOLE.items(), there, strict=True):
            whole[kind][i, values.index(value)] = CERTAIN
    return Seen(heat=heat, box=box, paint=paint, hidden=hidden, whole=whole)


class Sure(FactJudge):
    """A judge that sees what it is told."""

    def __init__(self, seen: Seen) -> None:
        nn.Module.__init__(self)
        self.names, self.seen = tuple(OBJECTS), seen

    def forward(self, pictures: torch.Tensor) -> Seen:
        return self.seen


def test_a_judge_that_sees_everything_finds_every_fact_and_no_contrary_one() -> None:
    drawn, rng = scenes(), random.Random(1)
    sure = Sure(truth(drawn))
    stated = [each.facts for each in drawn]
    untrue = [[contrary(f, each.scene, sure.names, rng) for f in each.facts] for each in drawn]
    for facts, right, wrong in zip(
        stated,
        verdicts(sure, torch.empty(0), stated),
        verdicts(sure, torch.empty(0), untrue),
        strict=True,
    ):
        assert [fact for fact, held in zip(facts, right, strict=True) if not held] == []
        assert not any(wrong)
    assert {fact.kind for facts in stated for fact in facts} == set(KINDS)


def test_contrary_facts_are_untrue_and_of_the_same_kind() -> None:
    rng = random.Random(1)
    for each in scenes():
        for fact in each.facts:
            other = contrary(fact, each.scene, tuple(OBJECTS), rng)
            assert other.kind == fact.kind
            assert not is_true(other, each.scene)
            assert fact.kind == "object" or other.says[:1] == fact.says[:1] or len(fact.says) == 1


def test_a_judge_that_sees_nothing_finds_no_object_and_no_relation() -> None:
    drawn = scenes()
    seen = truth(drawn)
    blind = Sure(
        Seen(
            heat=-seen.heat.abs(),
            box=seen.box,
            paint=seen.paint,
            hidden=seen.hidden,
            whole=seen.whole,
        )
    )
    stated = [each.facts for each in drawn]
    for facts, found in zip(stated, verdicts(blind, torch.empty(0), stated), strict=True):
        for fact, held in zip(facts, found, strict=True):
            assert held == (fact.kind in WHOLE)


def test_a_paint_that_looks_like_own_colours_counts_and_one_that_does_not_is_wrong() -> None:
    each = next(each for each in scenes() if any(item.paint for item in each.scene.items))
    (said, *_) = [fact for fact in each.facts if fact.kind == "paint"]
    seen = truth((each,))
    for own, right in ((-RARER, True), (-RARER + 2, False)):
        for item in each.scene.items:
            cell = int(item.y * CELLS), int(item.x * CELLS)
            seen.paint[(0, 0, *cell)] = CERTAIN + own
        assert verdicts(Sure(seen), torch.empty(0), [[said]]) == [[right]]


def test_a_score_is_the_share_of_facts_and_nothing_for_none() -> None:
    assert score([True, False, True, True]) == 0.75
    assert score([]) is None


def test_the_loss_is_least_where_everything_is_seen() -> None:
    drawn = scenes()[:16]
    seen = truth(drawn)
    assert fact_loss(seen, drawn, tuple(OBJECTS)) < 0.01
    shifted = tuple(drawn[1:] + drawn[:1])
    assert fact_loss(seen, shifted, tuple(OBJECTS)) > 10
    for part in ("heat", "box", "paint", "hidden"):
        parts = {name: getattr(seen, name) for name in ("heat", "box", "paint", "hidden", "whole")}
        parts[part] = torch.zeros_like(parts[part])
        assert fact_loss(Seen(**parts), drawn, tuple(OBJECTS)) > 0.05, part


def test_disturbed_pictures_keep_what_they_show() -> None:
    pictures = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    smooth = torch.nn.functional.avg_pool2d(pictures, 8).repeat_interleave(8, 2)
    smooth = smooth.repeat_interleave(8, 3)
    changed = disturbed(smooth, torch.Generator().manual_seed(1))
    assert not torch.equal(changed, smooth)
    assert (changed - smooth).abs().mean() < 0.1


def test_training_goes_on_where_it_was_killed_and_keeps_no_bad_judge(tmp_path: Path) -> None:
    with pytest.raises(QualityTooLow, match=r"of facts .* 98%.*more --minutes"):
        train_judge(TINY, Discs(), tmp_path, lambda line: None, renders=6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["judge.json", "judge.pt"]
    record = json.loads((tmp_path / "judge.json").read_text())
    assert (record["steps"], record["objects"]) == (1, 8)
    assert set(record["right"]) <= {*KINDS, "all"}
    run = JudgeRun(TINY, tmp_path)
    assert run.step == 1
    run.train(Discs(), print)
    assert run.step == 1  # its time is used
    more = JudgeRun(replace(TINY, minutes=run.elapsed / 60 + 1e-9), tmp_path)
    for a, b in zip(more.judge.parameters(), run.judge.parameters(), strict=True):
        assert torch.equal(a, b)
    more.train(Discs(), print)
    assert more.step == 2
    with pytest.raises(IncompatibleOptions, match=r"begun with objects 8; expected objects 9"):
        JudgeRun(replace(TINY, objects=9), tmp_path)


def test_a_good_judge_is_kept_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge_training, "held_out_accuracy", lambda *_: {"all": 0.99})
    assert train_judge(TINY, Discs(), tmp_path, lambda line: None) == {"all": 0.99}
    judge = load_judge(tmp_path / "judge.safetensors")
    kept = JudgeRun(TINY, tmp_path).judge.eval()
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(judge(pictures).heat, kept(pictures).heat, atol=0.02, rtol=0.02)


def test_accuracy_counts_untrue_facts_and_scenes_with_pairs_kept_apart() -> None:
    torch.manual_seed(0)
    right = held_out_accuracy(FactJudge(TINY.names, 32), Discs(), 12)
    assert set(right) <= {*KINDS, "all"}
    # One that has learnt nothing sees no object: it denies all that is true, and all that is not.
    assert right["object"] == 0.5


def test_its_features_tell_renders_from_noise_by_their_distance() -> None:
    torch.manual_seed(0)
    judge = FactJudge(TINY.names, 32).eval()
    with SceneBatches(Recipe(seed=1, names=TINY.names), Discs()) as batches, torch.no_grad():
        first, second = (judge.pooled(batches.take(24, 32, 32)[1]) for _ in range(2))
        noise = judge.pooled(torch.rand(24, 3, 32, 32) * 2 - 1)
    assert first.shape == (24, 256)
    assert frechet_distance(first, second) < frechet_distance(first, noise) / 2
