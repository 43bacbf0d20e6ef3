"""Law of the planning modules: each imports downward only, for types too."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PLAN = Path(__file__).parents[2] / "fresco_trt" / "plan"
MODULES = sorted(path.stem for path in PLAN.glob("*.py") if path.stem != "__init__")
PREFIX = "fresco_trt.plan."


def imported(module: str) -> set[str]:
    """The planning modules that one of them imports, anywhere in the file."""
    names = set()
    for node in ast.walk(ast.parse((PLAN / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)}


def test_no_module_imports_what_imports_it() -> None:
    order = list(TopologicalSorter({each: imported(each) for each in MODULES}).static_order())
    assert sorted(order) == MODULES


@pytest.mark.parametrize(
    ("above", "below"),
    [("making", "facts"), ("facts", "presets"), ("presets", "stages"), ("facts", "schedule")],
)
def test_the_reader_sees_the_chain_that_there_is(above: str, below: str) -> None:
    assert below in imported(above)
