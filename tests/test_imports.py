"""The import rule of the package, read from its files, and what a fresh interpreter loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fresco_trt"
FILES = sorted(PACKAGE.rglob("*.py"))

# What a part may import of the package beside itself. A part that is not here may import anything
# but the two doors below.
ALLOWED = {
    "errors": set[str](),
    "plan": {"errors"},
    "files": {"errors"},
    "bundle": {"plan", "files", "errors"},
    "models": {"plan", "files", "errors"},
    "backends": {"plan", "files", "models", "errors"},
    "run": {"plan", "models", "backends", "errors"},
    "pipelines": {"plan", "files", "bundle", "models", "backends", "run", "errors"},
    "lower": {"plan", "files", "bundle", "models", "backends", "run", "errors", "root"},
    "compile": {"plan", "files", "models", "backends", "lower", "errors", "root"},
}
DOORS = {"cli", "serve"}

HEAVY = {
    "diffusers",
    "elftools",
    "fastapi",
    "matplotlib",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "prometheus_client",
    "pydantic",
    "starlette",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "transformers",
    "uvicorn",
}
ENGINE_LIBRARIES = HEAVY - {"numpy", "pydantic"}

# Everything that planning, opening a bundle or asking for help reaches must start without torch.
LEAN = (
    "fresco_trt.api",
    "fresco_trt.backends",
    "fresco_trt.backends.base",
    "fresco_trt.backends.eager",
    "fresco_trt.backends.inductor.backend",
    "fresco_trt.backends.onnxruntime",
    "fresco_trt.backends.tensorrt.backend",
    "fresco_trt.bundle",
    "fresco_trt.cli.main",
    "fresco_trt.compile",
    "fresco_trt.models.flux.components",
    "fresco_trt.models.flux.family",
    "fresco_trt.models.registry",
    "fresco_trt.pipelines.image",
)


def part_of(module: str) -> str:
    """The part a dotted name of the package belongs to; "root" for the package itself."""
    _, _, inside = module.partition(".")
    first = inside.split(".")[0]
    return first or "root"


@cache
def imported_modules(path: Path) -> tuple[str, ...]:
    """Every absolute module name that a file imports, anywhere in it, for types too."""
    return tuple(_imported_modules(path))


def _imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                yield f"relative import at line {node.lineno}"
            elif base == "fresco_trt":
                yield from (_submodule(alias.name) for alias in node.names)
            else:
                yield base


def _submodule(name: str) -> str:
    """``from fresco_trt import name``: a module of that name, or the package's own attribute."""
    is_module = (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name).is_dir()
    return f"fresco_trt.{name}" if is_module else "fresco_trt"


def parts_imported(path: Path) -> set[str]:
    """The other parts of the package that a file imports."""
    names = [name for name in imported_modules(path) if name.split(".")[0] == "fresco_trt"]
    return {part_of(name) for name in names} - {own_part(path)}


def own_part(path: Path) -> str:
    """The part that a file of the package belongs to."""
    inside = path.relative_to(PACKAGE).with_suffix("").parts
    return part_of(".".join(("fresco_trt", *(part for part in inside if part != "__init__"))))


def identify(path: Path) -> str:
    """A file as its path from the root of the repository."""
    return str(path.relative_to(ROOT))


def test_a_file_imports_only_what_its_part_may() -> None:
    wrong = {}
    for path in FILES:
        own, found = own_part(path), parts_imported(path)
        extra = found - ALLOWED.get(own, found) | (set() if own in DOORS else found & DOORS)
        if extra:
            wrong[identify(path)] = extra
    assert not wrong


def test_no_circle_of_parts() -> None:
    imports: dict[str, set[str]] = {}
    for path in FILES:
        imports.setdefault(own_part(path), set()).update(parts_imported(path))
    # The package itself gives its version to all, and its public names to nobody inside.
    left = {part: found - {"root"} for part, found in imports.items() if part != "root"}
    while free := {part for part, found in left.items() if not found & left.keys()}:
        left = {part: found for part, found in left.items() if part not in free}
    assert not left


def test_only_models_imports_a_family() -> None:
    families = {path.parent.name for path in PACKAGE.glob("models/*/__init__.py")}
    assert "flux" in families
    prefixes = tuple(f"fresco_trt.models.{family}" for family in families)
    for path in FILES:
        if own_part(path) != "models":
            assert not [name for name in imported_modules(path) if name.startswith(prefixes)], path


def test_imports_are_absolute() -> None:
    for path in FILES:
        names = imported_modules(path)
        assert not [name for name in names if name.startswith("relative")], path


@pytest.mark.parametrize("part", ["errors", "plan"])
def test_planning_needs_the_standard_library_only(part: str) -> None:
    files = [path for path in FILES if own_part(path) == part]
    outside = {name.split(".")[0] for path in files for name in imported_modules(path)}
    assert files
    assert outside <= {"fresco_trt", *sys.stdlib_module_names}


def test_the_rules_name_parts_that_exist() -> None:
    parts = {own_part(path) for path in FILES}
    assert ALLOWED.keys() <= parts


def test_the_reader_sees_every_kind_of_import(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text(
        "import fresco_trt.lower.build\n"
        "from fresco_trt import errors, __version__\n"
        "def inside():\n"
        "    from fresco_trt.serve.app import run\n"
        "    from . import sibling\n"
    )
    assert list(imported_modules(source)) == [
        "fresco_trt.lower.build",
        "fresco_trt.errors",
        "fresco_trt",
        "fresco_trt.serve.app",
        "relative import at line 5",
    ]


def loaded(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after running ``code``."""
    report = "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code + report]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_is_lean() -> None:
    assert not loaded("import fresco_trt") & HEAVY


def test_planning_is_lean() -> None:
    assert not loaded("import fresco_trt; fresco_trt.plan('flux-tiny', stages=3)") & HEAVY


def test_the_plan_command_is_lean() -> None:
    code = (
        "from fresco_trt.cli.main import main\n"
        "code = main(['plan', '--model', 'flux-tiny', '--stages', '3', '--json'])\n"
        "if code: raise SystemExit(code)"
    )
    assert not loaded(code) & (HEAVY - {"pydantic"})  # typer itself is built on pydantic


def test_what_starts_a_command_is_lean() -> None:
    assert not loaded(f"import {', '.join(LEAN)}") & ENGINE_LIBRARIES


@pytest.mark.slow
def test_the_heavy_calls_are_what_loads_torch() -> None:
    # Guards the tests above: were the reading of sys.modules wrong, they could not fail.
    assert {"torch", "numpy"} <= loaded("import fresco_trt.run.sampler, numpy")
