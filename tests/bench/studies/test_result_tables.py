"""The figures of docs/results.md are those of the stored files, to the digit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.tables import GPU_MARKS, result_tables, with_gpu_tables

PAGE = (Path(__file__).parents[3] / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", list(result_tables()))
def test_the_page_shows_what_is_stored(table: str) -> None:
    assert table in PAGE


def test_writing_the_gpu_tables_changes_nothing_that_is_up_to_date() -> None:
    assert with_gpu_tables(PAGE) == PAGE
    begin, end = GPU_MARKS
    outdated = f"{PAGE.split(begin)[0]}{begin}\n\nold\n\n{end}{PAGE.split(end)[1]}"
    assert with_gpu_tables(outdated) == PAGE
