"""What the tests share is shared without waiting for itself."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from fresco_trt.lower import export
from tests import cxx
from tests.once import traced_once


def test_a_scope_within_another_takes_what_traces_and_not_the_others_memory(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # It would wait for ever for a lock that the outer one holds.
    with pytest.MonkeyPatch.context() as patch:

        def traces() -> None: ...

        patch.setattr(export, "_traced", traces)
        with traced_once(tmp_path_factory), traced_once(tmp_path_factory):
            assert vars(export._traced)["__wrapped__"] is traces
        assert export._traced is traces


@pytest.mark.skipif(shutil.which(cxx.COMPILER) is None, reason="there is no g++")
def test_a_header_is_read_once_for_its_flags_and_changes_nothing(tmp_path: Path) -> None:
    paths = [cxx.kept(["cstddef"], flags, tmp_path) for flags in (["-O0"], ["-O1"], ["-O0"])]
    assert paths[0] == paths[2] != paths[1]
    assert len(list(tmp_path.glob("*.gch"))) == 2
    source = tmp_path / "a.cpp"
    source.write_text("#include <cstddef>\nstd::size_t twice(std::size_t x) { return 2 * x; }\n")
    compilers = {cxx.COMPILER: [], str(cxx.script(tmp_path)): ["-include", str(paths[0])]}
    for number, (compiler, given) in enumerate(compilers.items()):
        made = str(tmp_path / f"{number}.o")
        command = [compiler, *given, str(source), "-O0", "-c", "-o", made]
        subprocess.run(command, check=True)
    assert (tmp_path / "0.o").read_bytes() == (tmp_path / "1.o").read_bytes()


@pytest.mark.skipif(shutil.which(cxx.COMPILER) is None, reason="there is no g++")
def test_what_all_wrappers_begin_with_is_compiled_once_and_calls_each_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cxx, "TEMPLATES", "")
    store, flags = tmp_path / "store", ["-O0", "-fPIC"]
    store.mkdir()
    header = cxx.kept(["cstddef"], flags, store)
    for number in (2, 3):
        source = tmp_path / f"{number}.wrapper.cpp"
        begins = 'std::size_t own(); extern "C" {\nstd::size_t ask() { return own(); }\n'
        source.write_text(f"{begins}{cxx.LAST}std::size_t own() {{ return {number}; }}\n")
        made, library = source.with_suffix(".o"), source.with_suffix(".so")
        cxx.wrapper(source, made, flags, header, store)
        subprocess.run([cxx.COMPILER, "-shared", str(made), "-o", str(library)], check=True)
        assert ctypes.CDLL(str(library)).ask() == number
    assert len(list(store.glob("*.o"))) == 1
