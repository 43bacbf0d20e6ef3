"""The README is executed: every block runs, in order, in one folder; every link leads somewhere.

A block that cannot run here says why, in a comment directly above it:
``<!-- not run: the reason -->``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
# A page without code, or one that is only linked to, is not executed, but its links are followed.
PAGES = sorted(
    page
    for folder in (".", "bench/results", "calibration", "engines", "graphs")
    for page in (ROOT / folder).glob("*.md")
)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"<!-- not run: (.+) -->\n\Z")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

RUNNERS = {
    "bash": ("bash", "-euo", "pipefail", "-c"),
    "python": (sys.executable, "-c"),
}
SHOWN = {"json", "text"}
PATIENCE = 1200  # seconds, against a hang in CI; nothing is measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A fenced block: its language, its code, the line it starts at, why it is not run if so."""

    language: str
    code: str
    line: int
    not_run: str | None


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


def links_of(text: str) -> list[str]:
    """Targets of a page's links inside the repository, without their anchors; code is left out."""
    prose = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
    targets = [target.partition("#")[0] for target in _LINK.findall(prose)]
    return [target for target in targets if target and "://" not in target]


def run_block(block: Block, folder: Path) -> None:
    """Run a block in ``folder`` with this interpreter's commands first on the path."""
    commands = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*RUNNERS[block.language], block.code],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(
            f"the block at line {block.line} exits with {done.returncode}:\n"
            f"{block.code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )


@pytest.mark.slow
def test_every_block_runs_in_order_in_one_folder(tmp_path: Path) -> None:
    to_run = [
        block
        for block in blocks_of(README.read_text(encoding="utf-8"))
        if block.language in RUNNERS and block.not_run is None
    ]
    assert {block.language for block in to_run} == RUNNERS.keys()
    for block in to_run:
        run_block(block, tmp_path)
    assert (tmp_path / "bell.png").is_file()


def test_every_block_is_of_a_language_that_is_run_or_only_shown() -> None:
    blocks = blocks_of(README.read_text(encoding="utf-8"))
    assert blocks
    assert {block.language for block in blocks} <= RUNNERS.keys() | SHOWN


def test_a_reason_not_to_run_stands_over_a_block_that_would() -> None:
    text = README.read_text(encoding="utf-8")
    excused = [block for block in blocks_of(text) if block.not_run is not None]
    assert all(block.language in RUNNERS for block in excused)
    assert text.count("<!-- not run") == len(excused)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = links_of(page.read_text(encoding="utf-8"))
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_the_files_that_the_tree_names_exist() -> None:
    text = README.read_text(encoding="utf-8")
    tree = next(block.code for block in blocks_of(text) if block.code.startswith("fresco_trt/"))
    folder = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        folder = ROOT / "fresco_trt" if line.startswith("  ") else ROOT
        assert (folder / name).exists(), f"{name} is in the README and not in {folder}"


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
```
```text
[shown](nowhere.md)
```
"""


def test_blocks_and_links_are_found_and_share_one_folder(tmp_path: Path) -> None:
    blocks = blocks_of(PAGE)
    assert [block.language for block in blocks] == ["python", "bash", "bash", "text"]
    assert [block.not_run for block in blocks] == [None, "it would fail", None, None]
    assert [block.line for block in blocks] == [4, 9, 15, 18]
    assert links_of(PAGE) == ["other.md"]
    run_block(blocks[0], tmp_path)
    run_block(blocks[2], tmp_path)


def test_a_block_that_fails_is_told_with_its_line_and_its_words(tmp_path: Path) -> None:
    block = Block(language="bash", code="echo why >&2; false; true", line=12, not_run=None)
    with pytest.raises(pytest.fail.Exception, match=r"(?s)line 12 exits with 1.*why"):
        run_block(block, tmp_path)
