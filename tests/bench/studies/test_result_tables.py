"""The figures of docs/results.md are those of the stored files, to the digit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.tables import result_tables

PAGE = (Path(__file__).parents[3] / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", list(result_tables()))
def test_the_page_shows_what_is_stored(table: str) -> None:
    assert table in PAGE
