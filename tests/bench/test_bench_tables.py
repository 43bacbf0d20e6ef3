"""A bench's document as Markdown: every row, its interval, blanks where nothing was measured."""

from __future__ import annotations

from fresco_trt.bench.table import bench_table
from tests.bench.documents import ALL, cells


def test_the_table_has_every_point_but_the_ablations() -> None:
    table = bench_table(ALL)
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[1:]] == [
        "| plain",
        "| fresco, fast",
        "| fresco, balanced",
    ]
    assert cells(table, "fresco, fast")[2] == "2.00 (1.50 to 2.50)"
    assert cells(table, "plain")[6] == ""
    assert "`fresco-trt bench` at abc: 64 scenes" in table
