"""Laws of the C++ runtime that compiled code runs on: the process's, looked at before it is loaded.

The compiled files here are a few lines of C++ in the place of a block.
"""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from torch._inductor import cpp_builder

from fresco_trt.backends.inductor import backend as inductor
from fresco_trt.backends.inductor import build as inductor_build
from fresco_trt.backends.inductor import log as inductor_log
from fresco_trt.backends.inductor import runtime as inductor_runtime
from fresco_trt.backends.inductor import unpacking
from fresco_trt.backends.inductor.backend import InductorBackend
from fresco_trt.backends.inductor.build import compile_layer
from fresco_trt.backends.inductor.runtime import link_settings, needed, shares_runtime
from fresco_trt.errors import BuildError, EngineFailed
from fresco_trt.models.family import Part
from fresco_trt.plan.signature import GraphSignature, TensorSpec

SOURCE = """
#include <locale>
#include <string>
extern "C" bool upper(const char *name, char letter) {
  return std::isupper(letter, std::locale(std::string(name)));
}
"""

STATIC, SHARED = ("-static-libstdc++",), ()
NAMED = tuple(f"-l{name}" for name in link_settings()["aot_inductor.custom_op_libs"])

LAYER = torch.nn.Linear(2, 2)
PART = Part(
    kind="single",
    name="single-4",
    signature=GraphSignature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(2,)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(2,)),),
    ),
    layers=(LAYER,),
)


def link(source: Path, target: Path, flags: tuple[str, ...]) -> str:
    """The command that does."""
    return f"g++ -O0 -shared -fPIC {source} -o {target} {' '.join(flags)}"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """A ``.pt2``-like file by the flags that its code was linked with."""
    folder = tmp_path_factory.mktemp("linked")
    source = folder / "upper.cpp"
    source.write_text(SOURCE)
    files = {}
    for flags in (SHARED, STATIC, (*NAMED, *STATIC)):
        library, path = folder / "upper.so", folder / f"{len(files)}.pt2"
        subprocess.run(link(source, library, flags).split(), check=True)
        packed(library, path)
        files[flags] = path
    return files


def packed(library: Path, path: Path) -> None:
    with ZipFile(path, "w") as package:
        package.write(library, "model/data/aotinductor/model/wrapper.so")


def compiling(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    """Have a layer's compilation link the lines above, by torch's own call of a compiler."""

    def compile_lines(layer: Any, signature: Any, path: Path, *rest: Any) -> None:
        source, library = path.with_name("upper.cpp"), path.with_name("upper.so")
        source.write_text(SOURCE)
        cpp_builder.run_compile_cmd(link(source, library, flags), cwd=str(path.parent))
        packed(library, path)

    monkeypatch.setattr(inductor_build, "_compile", compile_lines)
    monkeypatch.setattr(inductor_build, "constants_of", lambda *given: {"weight", "bias"})


def compile_to(folder: Path) -> None:
    folder.mkdir()
    compile_layer(LAYER, PART.signature, folder / "single-4.pt2", "cpu", None)


# --- what is seen -----------------------------------------------------------------------------


def test_a_static_runtime_is_told_from_the_shared_one(
    compiled: dict[tuple[str, ...], Path],
) -> None:
    assert {flags: shares_runtime(path) for flags, path in compiled.items()} == {
        SHARED: True,
        STATIC: False,
        # Named first, the shared one is taken even by a compiler that prefers the static one.
        (*NAMED, *STATIC): True,
    }
    assert "libc.so.6" in needed(compiled[STATIC])


def test_the_shared_runtime_is_named_on_the_link_line() -> None:
    assert inductor_build._settings(None, "cpu")["aot_inductor.custom_op_libs"] == [
        ":libstdc++.so.6"
    ]


def test_no_runtime_is_named_or_read_where_libraries_are_no_elf_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inductor_runtime.sys, "platform", "darwin")
    monkeypatch.setattr(inductor_runtime, "find_spec", lambda name: None)
    assert link_settings() == {}
    assert list(inductor_runtime.missing_reader()) == []
    assert shares_runtime(Path("no such file"))


def test_without_the_reader_nothing_is_built_or_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor_runtime, "find_spec", lambda name: None)
    (missing,) = InductorBackend().check()
    assert (missing.fix, missing.only_to_build) == ("pip install pyelftools", False)


# --- building ---------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [SHARED, (*NAMED, *STATIC)])
def test_code_on_the_shared_runtime_is_built(
    flags: tuple[str, ...], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling(monkeypatch, *flags)
    compile_to(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["single-4.pt2"]
    assert not cache.exists()


def test_a_static_runtime_fails_the_build_and_the_commands_are_logged(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setenv("LIBRARY_PATH", "/some/where")
    compiling(monkeypatch, *STATIC)
    monkeypatch.setattr(inductor_build, "constants_of", None)  # it would load the file
    run = cpp_builder.run_compile_cmd
    with pytest.raises(BuildError, match=r"g\+\+ linked a static C\+\+ runtime into single-4") as e:
        compile_to(tmp_path / "out")
    log = cache / "logs" / "single-4.log"
    assert "libc.so.6" in e.value.given
    assert e.value.given.endswith("and no libstdc++.so.6")
    assert "set CXX to a compiler" in e.value.fix
    assert e.value.fix.endswith(f"in {log}")
    said = log.read_text()
    assert "$ g++ -O0 -shared -fPIC" in said
    assert "CXX=g++\n" in said
    assert "LIBRARY_PATH=/some/where" in said
    assert "$ g++ -print-file-name=libstdc++.so\n/" in said
    assert list((tmp_path / "out").iterdir()) == []
    assert cpp_builder.run_compile_cmd is run


def test_where_no_log_can_be_written_the_error_has_the_command(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file")
    compiling(monkeypatch, *STATIC)
    with pytest.raises(BuildError) as caught:
        compile_to(tmp_path / "out")
    assert "no log was written" in caught.value.fix
    assert caught.value.fix.endswith("-static-libstdc++")


@pytest.mark.parametrize(
    "complaint",
    [
        "/usr/bin/ld: cannot find -l:libstdc++.so.6: No such file or directory",
        "ld.lld: error: unable to find library -l:libstdc++.so.6",
        "/usr/bin/ld.gold: error: cannot find libstdc++.so.6",
    ],
)
def test_a_linker_without_the_shared_runtime_is_said_to_lack_it(
    complaint: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "some-g++")

    def fail(*given: Any) -> None:
        raise RuntimeError(f"Command: some-g++ x.o -l:libstdc++.so.6 Output: {complaint}")

    monkeypatch.setattr(inductor_build, "_compile", fail)
    with pytest.raises(BuildError, match=r"some-g\+\+ finds no libstdc\+\+\.so\.6") as caught:
        compile_to(tmp_path / "out")
    assert "No such file or directory: 'some-g++'" in (cache / "logs/single-4.log").read_text()
    assert "set CXX" in caught.value.fix


def test_another_complaint_is_not_taken_for_that_one(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("Command: g++ x.o -l:libstdc++.so.6 Output: cannot find -lcuda")

    monkeypatch.setattr(inductor_build, "_compile", fail)
    with pytest.raises(BuildError, match=r"torch cannot compile single-4: .* -lcuda"):
        compile_to(tmp_path / "out")


def test_a_torch_that_tells_no_commands_still_leaves_a_log(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(cpp_builder, "run_compile_cmd")
    with pytest.raises(BuildError), inductor_log.logged("x"):
        raise BuildError("given", expected="expected", fix="fix")
    assert "does not tell its commands" in (cache / "logs/x.log").read_text()


# --- loading ----------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What would be loaded: these files are no packages of torch's."""
    libraries: list[Path] = []

    def open_it(library: Path, weights: Any) -> SimpleNamespace:
        libraries.append(library)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(inductor, "CompiledLayer", open_it)
    return libraries


def load(folder: Path, content: bytes) -> None:
    name = inductor.file_of(PART, {})
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    load_again(path)


def load_again(path: Path) -> None:
    name = inductor.file_of(PART, {})
    with ExitStack() as scope:
        inductor._loaded(PART, name, {name: unpacking.unpacked(path)}, scope)


def test_a_file_with_a_static_runtime_is_not_loaded(
    compiled: dict[tuple[str, ...], Path], opened: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(EngineFailed, match=r"single-4.*\.pt2 has a static C\+\+ runtime"):
        load(tmp_path, compiled[STATIC].read_bytes())
    for content in (b"code", compiled[SHARED].read_bytes()[:-40]):
        with pytest.raises(EngineFailed, match=r"single-4.*\.pt2 cannot be read"):
            load(tmp_path, content)
    assert opened == []
    load(tmp_path, compiled[SHARED].read_bytes())
    assert len(opened) == 1


def test_a_file_is_read_once_in_the_life_of_the_process(
    compiled: dict[tuple[str, ...], Path],
    opened: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load(tmp_path, compiled[SHARED].read_bytes())
    monkeypatch.setattr(unpacking, "shares_runtime", None)
    load_again(tmp_path / inductor.file_of(PART, {}))
    assert len(opened) == 2


def test_a_package_without_a_library_is_no_engine(opened: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "empty.pt2"
    with ZipFile(path, "w") as package:
        package.writestr("model/metadata.json", json.dumps({}))
    with pytest.raises(EngineFailed, match="holds no library"):
        load(tmp_path, path.read_bytes())
