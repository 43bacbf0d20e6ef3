"""Presets with less of the text: each beside itself with all of it, and nothing timed."""

from __future__ import annotations

import pytest

from bench.tables import text_table
from bench.text import PRESETS, STUDY, WHOLE, TextRunner, points
from fresco_trt.bench.points import chosen, table_named
from fresco_trt.models.registry import model_facts, model_names
from fresco_trt.plan.cost import plan_cost
from fresco_trt.plan.making import find_preset, plan_from_preset
from fresco_trt.plan.presets import Preset
from tests.bench.documents import document, row

CUT = [name for name in model_names() if len(model_facts(name).text_choices) > 1]
"""Models whose text may be cut: not those that hide its padding by a mask."""


@pytest.mark.parametrize("model", CUT)
def test_each_preset_stands_above_what_cuts_its_text(model: str) -> None:
    facts = model_facts(model)
    plain, *found = points(facts, facts.default_size)
    assert table_named(STUDY.points) is points
    assert (plain.method, len({point.name for point in found})) == ("plain", len(found))
    assert chosen([plain, *found], None, quick=True) == [plain, *found[:2], *found[4:6]]
    for preset, first in zip(PRESETS, (0, 4), strict=True):
        base, *cut = found[first : first + 4]
        assert base.settings == find_preset(facts, preset, max(facts.stage_counts))
        assert base.variant == WHOLE
        ratios = []
        for point in (base, *cut):
            assert isinstance(point.settings, Preset)
            assert point.preset == preset
            ratios.append(plan_cost(facts, plan_from_preset(facts, point.settings)).ratio)
        assert ratios == sorted(set(ratios))


def test_the_table_has_a_row_for_each_text() -> None:
    assert not TextRunner.timed
    made = document(
        row("plain"),
        row("fresco", preset="turbo", variant=WHOLE, twin_ssim=None),
        row("fresco", preset="turbo", variant="64+64+128 text tokens", twin_ssim=0.987),
    )
    lines = text_table(made).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:4]] == [
        ["| turbo", WHOLE],
        ["| turbo", "64+64+128 text tokens"],
    ]
    assert lines[3].endswith(" | 0.987 |")
