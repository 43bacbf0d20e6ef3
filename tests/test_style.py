"""The budget on functions and modules, and what package code never holds, read from the files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "fresco_trt").rglob("*.py"))

LONGEST_FUNCTION = 60
LONGEST_MODULE = 400
MEDIAN_FUNCTION = 10
NINTH_DECILE = 25

# A machine's own folders, other people's numbering, and serialisers that run what they read.
_FORBIDDEN_TEXT = re.compile(r"/(?:work|root|home)/|\bissue #?\d|\b(TODO|FIXME|XXX)\b")
_FORBIDDEN_MODULES = {"dill", "marshal", "pickle", "shelve"}
_FORBIDDEN_CALLS = {"eval", "exec"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """A function of the package and the lines of its body, docstring left out."""

    name: str
    lines: int


def functions_of(path: Path) -> Iterator[Function]:
    """Every function and method of a file, nested ones too."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(name=f"{identify(path)}:{node.name}", lines=body_lines(node))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def identify(path: Path) -> str:
    """A file as its path from the root of the repository."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def offences(path: Path) -> Iterator[str]:
    """Statements that package code does without, with their line."""
    for node in ast.walk(parsed(path)):
        line = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Assert):
            yield f"assert at {line}: it vanishes under -O, raise instead"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"bare except at {line}: it swallows an interrupt"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            yield from (f"{name} at {line}" for name in names & _FORBIDDEN_MODULES)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield from (f"{name} at {line}" for name in {node.func.id} & _FORBIDDEN_CALLS)


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_no_function_outgrows_a_screen(path: Path) -> None:
    assert not [each for each in functions_of(path) if each.lines > LONGEST_FUNCTION]


def test_most_functions_are_short() -> None:
    lines = [each.lines for path in FILES for each in functions_of(path)]
    assert median(lines) < MEDIAN_FUNCTION
    assert quantiles(lines, n=10)[-1] < NINTH_DECILE


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_no_module_outgrows_its_budget(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < LONGEST_MODULE


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(parsed(path))


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_package_code_never_asserts_swallows_or_unpickles(path: Path) -> None:
    assert not list(offences(path))


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_package_code_names_no_machine_and_no_ticket(path: Path) -> None:
    assert not _FORBIDDEN_TEXT.findall(path.read_text(encoding="utf-8"))


def test_the_measure_sees_what_it_should(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "import pickle\n"
        "def long():\n"
        '    """Two lines\n'
        '    of documentation."""\n'
        "    try:\n"
        "        assert eval('1')\n"
        "    except:\n"
        "        pass\n"
        "def empty():\n"
        '    """Only documentation."""\n'
    )
    assert [(each.name, each.lines) for each in functions_of(source)] == [
        ("source.py:long", 4),
        ("source.py:empty", 0),
    ]
    found = [offence.split(" at ")[0] for offence in offences(source)]
    assert sorted(found) == ["assert", "bare except", "eval", "pickle"]
