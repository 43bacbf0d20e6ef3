"""The types of all code, tests and studies too, as mypy reads them."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests import mypy_beside
from tests.mypy_beside import begun, ended
from tests.once import shared_folder

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_mypy_finds_nothing(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    status, said = ended(shared_folder(tmp_path_factory))
    assert status == 0, said


def test_of_all_processes_one_begins_it_and_each_hears_how_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import pathlib, sys
print("an error", flush=True)
pathlib.Path(sys.argv[1]).open("x").write("1")
"""
    monkeypatch.setattr(mypy_beside, "_CODE", code)
    with begun(tmp_path), begun(tmp_path):
        for _ in range(2):
            assert ended(tmp_path) == (1, "an error\n")


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
