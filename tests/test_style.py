"""What package code keeps to, read from its files: sizes, parameters, and what it never holds."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from typer.main import get_command

from fresco_trt.cli.main import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fresco_trt"
FILES = sorted(PACKAGE.rglob("*.py"))

LONGEST_MODULE = 400
MOST_PARAMETERS = 10
MOST_OPTIONS = 16

UNLIMITED = {"bench", "demo"}
"""Folders whose functions are not counted yet."""

# A machine's own folders, other people's numbering, and serialisers that run what they read.
_FORBIDDEN_TEXT = re.compile(r"/(?:work|root|home)/|\bissue #?\d|\b(TODO|FIXME|XXX)\b")
_FORBIDDEN_MODULES = {"dill", "marshal", "pickle", "shelve"}
_FORBIDDEN_CALLS = {"eval", "exec"}


def parameters_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every function and method of a file, nested ones too, and how many parameters it has."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            names = [each.arg for each in every if each is not None]
            yield node.name, len([name for name in names if name not in ("self", "cls")])


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def identify(path: Path) -> str:
    """A file as its path from the root of the repository."""
    return str(path.relative_to(ROOT))


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


def test_no_function_takes_too_many_parameters() -> None:
    # A command's parameters are its options, which have a limit of their own.
    commands = {each.callback.__name__ for each in app.registered_commands if each.callback}
    assert not [
        f"{identify(path)}: {name} has {count}"
        for path in FILES
        if path.relative_to(PACKAGE).parts[0] not in UNLIMITED
        for name, count in parameters_of(path)
        if count > MOST_PARAMETERS
        if not (path.parent.name == "cli" and name in commands)
    ]


def test_no_command_has_too_many_options() -> None:
    commands = getattr(get_command(app), "commands", {})
    options = {name: [each.name for each in command.params] for name, command in commands.items()}
    assert {"plan", "build", "generate", "bench"} <= options.keys()
    assert not {name: found for name, found in options.items() if len(found) > MOST_OPTIONS}


def test_no_module_outgrows_its_budget() -> None:
    lines = {identify(path): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert not {name: count for name, count in lines.items() if count >= LONGEST_MODULE}


def test_every_module_says_what_it_is() -> None:
    assert not [identify(path) for path in FILES if not ast.get_docstring(parsed(path))]


def test_package_code_never_asserts_swallows_or_unpickles() -> None:
    assert not [f"{identify(path)}: {each}" for path in FILES for each in offences(path)]


def test_package_code_names_no_machine_and_no_ticket() -> None:
    found = {
        identify(path): [match[0] for match in _FORBIDDEN_TEXT.finditer(path.read_text("utf-8"))]
        for path in FILES
    }
    assert not {name: words for name, words in found.items() if words}


def test_the_measure_sees_what_it_should(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "import pickle\n"
        "class Some:\n"
        "    def method(self, one, /, two, *rest, three=3, **more):\n"
        "        try:\n"
        "            assert eval('1')\n"
        "        except:\n"
        "            pass\n"
        "def empty(): ...\n"
    )
    assert dict(parameters_of(source)) == {"method": 5, "empty": 0}
    found = [offence.split(" at ")[0] for offence in offences(source)]
    assert sorted(found) == ["assert", "bare except", "eval", "pickle"]
