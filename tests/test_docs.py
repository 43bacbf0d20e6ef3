"""The README and the pages of docs/ are executed: every block runs, every link leads somewhere.

The blocks of one section, below a heading of two #, run in order in a folder of their own; sections
do not build on one another. The pictures of docs/images are at hand there, as they are in a clone.
A block that cannot run here says why, in a comment directly above it:
``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.preloaded import Preloaded, environment_with

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RUN = (README, *sorted((ROOT / "docs").glob("*.md")))
# Of these the links are followed; what they show is not executed.
LINKED = sorted(
    page
    for folder in (".", "bench/results", "calibration", "docs", "engines", "graphs")
    for page in (ROOT / folder).glob("*.md")
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_MARKER = re.compile(r"<!-- not run: (.+) -->\n\Z")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

EXECUTED = {"bash", "python"}
SHOWN = {"json", "text"}
README_BYTES = 9 * 1024

README_ROWS = {
    "plain": "diffusers, 50 steps",
    "taylorseer, 14 steps, mu 2.2, interval 2, diffusers": (
        "diffusers with its TaylorSeer cache, 14 steps"
    ),
    "cache, 14 steps, mu 2.2, taylor, interval 2, warm-up 2": (
        "**ours**, one stage, 14 steps, cache `taylor`"
    ),
    "few-step, 4 steps, engine, mu 2.2": "control: 4 plain steps on our engine",
    "fresco, 3+3+2 steps": "**ours**, three stages of 3+3+2 steps",
    "few-step, 3 steps, engine, mu 2.2": "control: 3 plain steps on our engine",
}
"""Points of bench/results/flux-tiny.json, and what the README calls them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A fenced block: its language, its code, the line it starts at, why it is not run if so."""

    language: str
    code: str
    line: int
    not_run: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """The blocks to run of one section of a page."""

    page: Path
    heading: str
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        return f"{self.page.name}: {self.heading}"


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a Markdown page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        marker = _MARKER.search(before)
        block = Block(
            language=match[1],
            code=match[2],
            line=before.count("\n") + 1,
            not_run=marker[1] if marker else None,
        )
        found.append(block)
    return found


def sections_of(page: Path) -> list[Section]:
    """The sections of a page that have a block to run, in order."""
    text = page.read_text(encoding="utf-8")
    code = [(match.start(), match.end()) for match in _FENCE.finditer(text)]
    headings = [("", 0)] + [
        (match[1], text.count("\n", 0, match.start()) + 1)
        for match in _HEADING.finditer(text)
        if not any(start <= match.start() < end for start, end in code)
    ]
    ends = [line for _, line in headings[1:]] + [sys.maxsize]
    found = []
    for (heading, start), end in zip(headings, ends, strict=True):
        to_run = tuple(
            block
            for block in blocks_of(text)
            if start <= block.line < end and block.language in EXECUTED and block.not_run is None
        )
        if to_run:
            found.append(Section(page=page, heading=heading, blocks=to_run))
    return found


def links_of(text: str) -> list[str]:
    """Targets of a page's links inside the repository, without their anchors; code is left out."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
    targets = [target.partition("#")[0] for target in _LINK.findall(prose)]
    return [target for target in targets if target and "://" not in target]


def run_block(block: Block, folder: Path, cache: Path, preloaded: Preloaded) -> None:
    """Run a block in ``folder``; Python, and what a shell calls ``fresco-trt``, in forks."""
    run = preloaded.run if block.language == "python" else preloaded.shell
    done = run(block.code, folder, environment=environment_with(cache))
    if done.status != 0:
        pytest.fail(
            f"the block at line {block.line} exits with {done.status}:\n"
            f"{block.code}\n{done.said[-6000:]}"
        )


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where blocks keep what one build leaves to the next; the user's own is not touched."""
    return tmp_path_factory.mktemp("cache")


# --- what is run ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("section", [each for page in RUN for each in sections_of(page)], ids=str)
def test_every_block_runs(
    section: Section, tmp_path: Path, cache: Path, preloaded: Preloaded
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/images").symlink_to(ROOT / "docs/images")
    for block in section.blocks:
        run_block(block, tmp_path, cache, preloaded)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_every_block_is_of_a_language_that_is_run_or_only_shown(page: Path) -> None:
    blocks = blocks_of(page.read_text(encoding="utf-8"))
    assert {block.language for block in blocks} <= EXECUTED | SHOWN


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_a_reason_not_to_run_stands_over_a_block_that_would(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    excused = [block for block in blocks_of(text) if block.not_run is not None]
    assert all(block.language in EXECUTED for block in excused)
    assert text.count("<!-- not run") == len(excused)


# --- what is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = links_of(page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_readme_is_read_in_three_minutes() -> None:
    assert README.stat().st_size <= README_BYTES


def test_the_readme_says_of_edits_what_is_stored() -> None:
    text = " ".join(README.read_text(encoding="utf-8").split())
    stored = json.loads((ROOT / "bench/results/editing.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in stored["rows"]}
    plain, few = rows["plain"], rows["few-step, 3 steps, mu 1.15"]
    ours = rows["specedit, hicache 2"]
    assert (
        f"Of {stored['scenes']} edits, five such stages with a cache make {ours['score']:.2f} in "
        f"{ours['speedup']:.1f}x less time than {plain['steps'][0]} plain steps "
        f"({plain['score']:.2f}), and keep {ours['outside']:.1f} dB outside "
        f"({plain['outside']:.1f}). 3 plain steps: {few['speedup']:.1f}x, {few['score']:.2f}, "
        f"{few['outside']:.1f} dB."
    ) in text


def test_the_readme_shows_what_is_stored() -> None:
    text = README.read_text(encoding="utf-8")
    stored = json.loads((ROOT / "bench/results/flux-tiny.json").read_text(encoding="utf-8"))
    rows = {row["point"]: row for row in stored["rows"]}
    for point, name in README_ROWS.items():
        assert f"| {name} | {_figures(rows[point])} |" in text
    assert text.count("\n| diffusers") + text.count("\n| **ours**") + text.count("\n| control") == 6


def _figures(row: dict[str, Any]) -> str:
    speed = f"{row['speedup']:.1f}x ({row['speedup_low']:.1f} to {row['speedup_high']:.1f})"
    score = f"{row['score']:.2f} ({row['score_low']:.2f} to {row['score_high']:.2f})"
    return f"{speed} | {score} | {row['ssim']:.3f}"


def test_the_files_that_the_tree_names_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = next(block.code for block in blocks_of(text) if block.code.startswith("fresco_trt/"))
    named = [line for line in tree.splitlines() if not line.startswith("   ")]
    for line in named:
        folder = ROOT / "fresco_trt" if line.startswith("  ") else ROOT
        assert (folder / line.split()[0]).exists(), line


def test_a_bug_report_asks_for_what_the_machine_can_do() -> None:
    for name in ("bug_report.yml", "feature_request.yml"):
        form = (ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8")
        assert "fresco-trt doctor --json" in form


# --- the site ---------------------------------------------------------------------------------

_FETCHED = re.compile(r"<(script|img|iframe)[^>]+src=\"?https?:|<link[^>]+href=\"?https?:[^>]*css")


@pytest.mark.skipif(
    find_spec("material") is None, reason="mkdocs-material is not installed: the docs extra has it"
)
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(RUN) - 2
    assert not [page for page in pages if _FETCHED.search(page.read_text(encoding="utf-8"))]
    assert (tmp_path / "repository/bench/results/flux-tiny-pictures.jpg").is_file()


# --- the test itself --------------------------------------------------------------------------

PAGE = """
A [link](other.md#part), an [address](https://example.org/x), `[code](not-a-link)`.

```python
from pathlib import Path
Path("told").write_text("said")
```
<!-- not run: it would fail -->
```bash
exit 3
```

<!-- not run: too far above -->

```bash
test "$(cat told)" = said
## no heading
```
## Second
```text
[shown](nowhere.md)
```
```bash
test ! -e told
```
"""


@pytest.mark.slow
def test_blocks_sections_and_links_are_found(tmp_path: Path, preloaded: Preloaded) -> None:
    blocks = blocks_of(PAGE)
    assert [block.language for block in blocks] == ["python", "bash", "bash", "text", "bash"]
    assert [block.not_run for block in blocks] == [None, "it would fail", None, None, None]
    assert [block.line for block in blocks] == [4, 9, 15, 20, 23]
    assert links_of(PAGE) == ["other.md"]
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    first, second = sections_of(page)
    assert (first.heading, second.heading) == ("", "Second")
    assert (first.blocks, second.blocks) == ((blocks[0], blocks[2]), (blocks[4],))
    for number, section in enumerate((first, second)):
        (folder := tmp_path / str(number)).mkdir()
        for block in section.blocks:
            run_block(block, folder, tmp_path, preloaded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("bash", "echo why >&2; false; true"),
        ("bash", "fresco-trt plan --model why"),
        ("bash", "openssl why\nfresco-trt plan --model flux-tiny"),
        ("python", "import sys; print('why'); sys.exit(1)"),
        ("python", "raise ValueError('why')"),
    ],
)
def test_a_block_that_fails_is_told_with_its_line_and_its_words(
    tmp_path: Path, preloaded: Preloaded, language: str, code: str
) -> None:
    block = Block(language=language, code=code, line=12, not_run=None)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)line 12 exits with [12].*why"):
        run_block(block, tmp_path, tmp_path, preloaded)
