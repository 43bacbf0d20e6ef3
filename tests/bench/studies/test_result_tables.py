"""The figures of the pages in docs/ are those of the stored files, to the digit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.tables import (
    EDITING_MARKS,
    FITNESS_MARKS,
    GPU_MARKS,
    SERVING_MARKS,
    STRESS_MARKS,
    VIDEO_MARKS,
    result_tables,
    stored,
    with_demo_tables,
    with_editing_tables,
    with_gpu_tables,
    with_server_tables,
    with_video_tables,
)

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
SERVE = (DOCS / "serve.md").read_text(encoding="utf-8")
EDIT = (DOCS / "edit.md").read_text(encoding="utf-8")
DEMO = (DOCS / "demo.md").read_text(encoding="utf-8")
VIDEO = (DOCS / "video.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("table", list(result_tables()))
def test_the_page_shows_what_is_stored(table: str) -> None:
    assert table in PAGE


def test_the_page_of_the_demo_says_plainly_what_it_cannot_judge() -> None:
    fit = stored("demo-fitness").get("fit", False)
    assert ("**Fit to judge by**" in DEMO) == fit
    assert ("**Not fit to judge by**" in DEMO) != fit
    # The list below holds for a model that is not fit; of another it would be untrue.
    assert ("because few steps\n  lose none" in DEMO) != fit


@pytest.mark.parametrize(
    ("page", "marks", "renewed"),
    [
        (PAGE, GPU_MARKS, with_gpu_tables),
        (SERVE, SERVING_MARKS, with_server_tables),
        (SERVE, STRESS_MARKS, with_server_tables),
        (EDIT, EDITING_MARKS, with_editing_tables),
        (DEMO, FITNESS_MARKS, with_demo_tables),
        (VIDEO, VIDEO_MARKS, with_video_tables),
    ],
)
def test_writing_the_tables_changes_nothing_that_is_up_to_date(
    page: str, marks: tuple[str, str], renewed: Callable[[str], str]
) -> None:
    assert renewed(page) == page
    begin, end = marks
    outdated = f"{page.split(begin)[0]}{begin}\n\nold\n\n{end}{page.split(end)[1]}"
    assert renewed(outdated) == page
