"""The types of all code, tests and studies too, as mypy reads them."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_mypy_finds_nothing() -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_reads_every_module_that_is_imported() -> None:
    """But those of diffusers: in place of a missing torch they are stand-ins."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    follows: dict[str, set[str]] = {"skip": set(), "normal": set()}
    for override in settings["overrides"]:
        names = override["module"]
        follows.get(override.get("follow_imports", ""), set()).update(
            [names] if isinstance(names, str) else names
        )
    skipped = follows["skip"] - {"diffusers.*"}
    assert not [
        name
        for folder in settings["files"]
        for path in (ROOT / folder).rglob("*.py")
        for name in imported(path)
        if any(fnmatch(f"{name}.", pattern + "*") for pattern in skipped)
        and not any(fnmatch(name, pattern) for pattern in follows["normal"])
    ]


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
