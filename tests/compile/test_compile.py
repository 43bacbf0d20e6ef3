"""torch.compile(backend="fresco_trt"): the eager picture, engines kept on disk, nothing in silence.

Most tests compile graphs of a few operators; the laws on flux-tiny run one small size.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import fresco_trt
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.compile import compile_graph, counters
from fresco_trt.compile.captured import Captured, check_circumstances
from fresco_trt.compile.engine import identity
from fresco_trt.compile.options import (
    chosen_library,
    library,
    library_names,
    read_options,
)
from fresco_trt.compile.store import ENTRY, EngineStore
from fresco_trt.errors import (
    BackendUnavailable,
    BuildError,
    IncompatibleOptions,
    UnsupportedGraph,
)
from fresco_trt.files.cache_folder import cache_folder
from tests.compile.compiling import KEY, SIGNATURE, Small, compiled, entries, filled, since
from tests.preloaded import Preloaded
from tests.shallow import shallow_transformer

ROOT = Path(__file__).parents[2]
ENTRY_POINT = "fresco_trt.compile:compile_graph"

# --- the laws, on a real pipeline ---------------------------------------------------------------


def shallow_pipeline(folder: Path) -> Any:
    """flux-tiny with one block of each kind, stored in ``folder`` too: exporting takes a second a
    block.
    """
    import diffusers

    untyped: Any = diffusers
    pipe = untyped.FluxPipeline.from_pretrained(
        fresco_trt.pretrained("flux-tiny"), transformer=shallow_transformer()
    )
    pipe.save_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: Any) -> Any:
    """Pixels 0..255 of a picture at 64x64 in two steps."""
    picture = pipe(
        "a red apple",
        height=64,
        width=64,
        num_inference_steps=2,
        max_sequence_length=32,
        generator=torch.Generator("cpu").manual_seed(3),
        output_type="np",
    ).images[0]
    return picture * 255


@pytest.mark.slow
def test_a_pipelines_transformer_draws_the_eager_picture_and_a_second_process_reuses_the_engine(
    cache: Path, tmp_path: Path, preloaded: Preloaded
) -> None:
    pipe, before = shallow_pipeline(tmp_path / "pipeline"), counters()
    eager = drawn(pipe)
    pipe.transformer = compiled(pipe.transformer, cache, strict=True)
    assert np.abs(drawn(pipe) - eager).max() < 0.1
    assert since(before) == (1, 0, 0)
    assert len(entries(cache)) == 1
    assert in_another_process(cache, tmp_path, preloaded) == {
        "built": 0,
        "reused": 1,
        "fell_back": 0,
    }


# torch finds the backend by the entry point of an installed package, which a folder stands for.
SECOND = """
import json, sys, torch, diffusers
pipe = diffusers.FluxPipeline.from_pretrained("pipeline", low_cpu_mem_usage=False)
pipe.transformer = torch.compile(
    pipe.transformer, backend="fresco_trt", options={"cache": sys.argv[1]}, dynamic=False
)
pipe("a red apple", height=64, width=64, num_inference_steps=2, max_sequence_length=32)
from fresco_trt.compile import counters
now = counters()
print(json.dumps({"built": now.built, "reused": now.reused, "fell_back": now.fallbacks}))
"""


def installed(folder: Path) -> list[str]:
    """A search path on which this package is installed, with the project's entry point."""
    about = folder / "fresco_trt-0.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fresco-trt\nVersion: 0.0\n")
    (about / "entry_points.txt").write_text(f"[torch_dynamo_backends]\nfresco_trt = {ENTRY_POINT}")
    return [str(folder), str(ROOT)]


def in_another_process(cache: Path, folder: Path, preloaded: Preloaded) -> dict[str, int]:
    """The counters of a new process that draws the same size with the pipeline in ``folder``."""
    code = f"import sys; sys.path[:0] = {installed(folder / 'installed')}\n{SECOND}"
    done = preloaded.run(code, folder, "-c", str(cache))
    assert done.status == 0, done.said
    found: dict[str, int] = json.loads(done.said.splitlines()[-1])
    return found


# --- engines for weights and shapes -------------------------------------------------------------


def test_a_call_gives_what_torch_gives_in_tensors_of_its_own(cache: Path) -> None:
    module, x = Small(), torch.randn(2, 4)
    fast = compiled(module, cache, strict=True)
    first = fast(x)
    kept = first.clone()
    torch.testing.assert_close(first, module(x))
    torch.testing.assert_close(fast(x + 1), module(x + 1))
    assert torch.equal(first, kept)


def test_an_engine_is_built_once_for_each_shape(cache: Path) -> None:
    module, before = Small(), counters()
    fast = compiled(module, cache)
    for rows in (1, 2, 1, 2, 5):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(fast(x), module(x))
    assert since(before) == (3, 0, 0)


def test_one_code_with_two_sets_of_weights_keeps_both_engines(cache: Path) -> None:
    blocks, x, before = [Small(), Small()], torch.randn(2, 4), counters()
    for block in blocks:
        block.compile(backend="fresco_trt", options={"cache": str(cache)})
    for _ in range(2):
        for block in blocks:
            torch.testing.assert_close(block(x), block.forward(x))
    assert since(before) == (2, 0, 0)


def test_a_new_compilation_reuses_what_is_on_disk(cache: Path) -> None:
    module, x, before = Small(), torch.randn(2, 4), counters()
    for _ in range(2):
        torch._dynamo.reset()
        compiled(module, cache)(x)
    assert since(before) == (1, 1, 0)


# --- the key -----------------------------------------------------------------------------------


def key_parts(
    module: nn.Module, x: Tensor, function: Callable[[Tensor, Tensor], Tensor] = torch.mul
) -> Any:
    """The identity of the engine of a small graph: ``function`` of an input and a weight."""
    caught: list[Any] = []

    def catch(graph: Any, examples: Any) -> Any:
        caught.append((graph, examples))
        return graph.forward

    torch._dynamo.reset()
    torch.compile(lambda x: function(x, module.weight), backend=catch)(x)
    captured = Captured.of(*caught[0])
    bound = captured.bind(caught[0][1])
    signature = captured.signature(captured.split(caught[0][1])[1], [x])
    return identity(captured, bound, signature, library("onnxruntime"))


def weighted(value: float) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.full((4,), value), requires_grad=False)
    return module


def test_the_key_covers_graph_shapes_weights_and_flags() -> None:
    one, x = weighted(1.0), torch.ones(4)
    parts = key_parts(one, x)
    assert key_parts(weighted(1.0), x) == parts
    different = {
        "weights": key_parts(weighted(2.0), x),
        "signature": key_parts(one, torch.ones(2, 4)),
        "graph": key_parts(one, x, torch.add),
    }
    for name, other in different.items():
        assert {each for each in parts if parts[each] != other[each]} == {name}


def test_the_key_covers_global_flags_library_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    one, x = weighted(1.0), torch.ones(4)
    parts = key_parts(one, x)
    assert parts["backend"][0] == "onnxruntime"
    assert parts["device"] == ["cpu"]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        other = key_parts(one, x)
    finally:
        torch.set_float32_matmul_precision(before)
    assert {each for each in parts if parts[each] != other[each]} == {"flags"}


# --- the cache on disk --------------------------------------------------------------------------


def spoil(entry: Path, how: str) -> None:
    path = entry / ("graph.onnx" if how != "entry" else ENTRY)
    if how == "missing":
        path.unlink()
    elif how == "extra":
        (entry / "more.bin").write_bytes(b"x")
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize("how", ["bytes", "entry", "missing", "extra"])
def test_a_damaged_entry_is_built_again_and_told(
    cache: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    module, x, before = Small(), torch.randn(2, 4), counters()
    compiled(module, cache)(x)
    (entry,) = entries(cache)
    spoil(entry, how)
    torch._dynamo.reset()
    with caplog.at_level(logging.WARNING, "fresco_trt"):
        torch.testing.assert_close(compiled(module, cache)(x), module(x))
    assert since(before) == (2, 0, 0)
    assert caplog.text.count("is damaged") == 1
    torch._dynamo.reset()
    compiled(module, cache)(x)
    assert since(before) == (2, 1, 0)


def test_the_first_of_two_writers_of_a_key_stays_and_the_other_reads_it(cache: Path) -> None:
    first, second = EngineStore(cache), EngineStore(cache)

    def make(folder: Path) -> tuple[str, ...]:
        first.build(KEY, {}, SIGNATURE, filled(b"one"))
        return filled(b"two")(folder)

    entry = second.build(KEY, {}, SIGNATURE, make)
    assert (entry.folder / "engine").read_bytes() == b"one"
    assert first.find(KEY, SIGNATURE) == second.find(KEY, SIGNATURE) == entry
    assert {path.name for path in (cache / "compile-2").iterdir()} == {KEY, "weights"}


def test_nothing_is_left_of_a_build_that_failed(cache: Path) -> None:
    store = EngineStore(cache)

    def make(folder: Path) -> tuple[str, ...]:
        (folder / "half").write_bytes(b"an engine")
        raise BuildError("a graph", expected="another", fix="change it")

    with pytest.raises(BuildError):
        store.build(KEY, {}, SIGNATURE, make)
    assert list((cache / "compile-2").iterdir()) == []
    assert store.find(KEY, SIGNATURE) is None


def test_large_files_with_equal_content_are_on_the_disk_once(cache: Path) -> None:
    store, large = EngineStore(cache), os.urandom(1_100_000)
    keys = ["0" * 64, "1" * 64, "2" * 64]
    found = [store.build(key, {}, SIGNATURE, filled(large)) for key in keys[:2]]
    files = {(entry.folder / "engine").stat().st_ino for entry in found}
    assert len(files) == 1
    (kept,) = (cache / "compile-2" / "weights").iterdir()
    kept.unlink()
    kept.write_bytes(b"spoiled")
    os.link(kept, cache / "held")  # or it would be swept as no longer used
    last = store.build(keys[2], {}, SIGNATURE, filled(large))
    assert (last.folder / "engine").read_bytes() == large == kept.read_bytes()


def test_a_shared_file_that_no_engine_has_any_more_is_swept(cache: Path) -> None:
    store = EngineStore(cache)
    entry = store.build(KEY, {}, SIGNATURE, filled(os.urandom(1_100_000)))
    shutil.rmtree(entry.folder)
    store.build("1" * 64, {}, SIGNATURE, filled(b"small"))
    assert list((cache / "compile-2" / "weights").iterdir()) == []


def test_the_cache_is_where_the_option_the_variable_or_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FRESCO_TRT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "fresco-trt"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fresco-trt"
    monkeypatch.setenv("FRESCO_TRT_CACHE", "~/engines")
    assert cache_folder() == tmp_path / "engines"
    assert cache_folder(tmp_path / "given") == tmp_path / "given"


# --- fallbacks ---------------------------------------------------------------------------------


def draws(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


def writes(x: Tensor) -> Tensor:
    x.mul_(2.0)
    return x + 1.0


def views(x: Tensor) -> Tensor:
    return x[:, :2]


def wide(x: Tensor) -> Tensor:
    return x.double()


UNSUPPORTED = {
    draws: "it draws random numbers",
    writes: "it writes to a tensor that it is given",
    views: "it returns a view of what it is given",
    wide: "tensor output_0 of dtype float64",
}


@pytest.mark.parametrize("function", UNSUPPORTED, ids=lambda each: each.__name__)
def test_what_no_engine_can_do_is_run_by_torch_told_and_counted(
    cache: Path, function: Callable[[Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    before, fast = counters(), compiled(function, cache)
    x = torch.ones(2, 4)
    with caplog.at_level(logging.WARNING, "fresco_trt"):
        torch.manual_seed(0)
        given = fast(x.clone())
        fast(x.clone())
    torch.manual_seed(0)
    assert torch.equal(given, function(x.clone()))
    assert since(before) == (0, 0, 1)
    assert caplog.text.count("torch runs a graph that has no engine") == 1
    reasons = counters().fell_back.keys() - before.fell_back.keys()
    assert any(UNSUPPORTED[function] in each for each in (*reasons, *before.fell_back))
    assert UNSUPPORTED[function] in caplog.text
    assert not entries(cache)


def test_what_a_graph_writes_to_its_input_is_written(cache: Path) -> None:
    x = torch.ones(2, 4)
    compiled(writes, cache)(x)
    assert torch.equal(x, torch.full((2, 4), 2.0))


def test_strict_refuses_what_would_fall_back(cache: Path) -> None:
    before = counters()
    with pytest.raises(UnsupportedGraph, match=r"it draws random numbers.*Fix: leave that part"):
        compiled(draws, cache, strict=True)(torch.ones(2, 4))
    assert since(before) == (0, 0, 0)


def test_training_is_left_to_torch(cache: Path) -> None:
    module, before = Small().requires_grad_(True), counters()
    compiled(module, cache)(torch.ones(2, 4)).sum().backward()
    assert module.linear.weight.grad is not None
    assert since(before) == (0, 0, 1)
    with torch.no_grad():
        compiled(module, cache)(torch.ones(2, 4))
    assert since(before) == (1, 0, 1)


def test_autocast_is_left_to_torch(cache: Path) -> None:
    module, before = Small(), counters()
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled(module, cache)(torch.ones(2, 4))
        assert torch.equal(found, module(torch.ones(2, 4)))
    assert since(before) == (0, 0, 1)


def test_code_that_the_key_cannot_cover_is_left_to_torch(cache: Path) -> None:
    with torch.library._scoped_library("fresco_test", "FRAGMENT") as scope:
        scope.define("twice(Tensor x) -> Tensor")
        scope.impl("twice", lambda x: x * 2, "CompositeImplicitAutograd")
        fast = compiled(lambda x: torch.ops.fresco_test.twice(x) + 1, cache, strict=True)
        with pytest.raises(UnsupportedGraph, match=r"it calls .*twice"):
            fast(torch.ones(2, 4))


@pytest.mark.parametrize("kind", [type("Odd", (Tensor,), {}), "sparse"])
def test_tensors_that_are_no_plain_memory_are_refused(kind: Any) -> None:
    plain = torch.eye(2)
    odd = plain.to_sparse() if kind == "sparse" else plain.as_subclass(kind)
    check_circumstances([plain, nn.Parameter(plain, requires_grad=False), 3])
    with pytest.raises(UnsupportedGraph, match=r"it takes a torch\.\w+ \w+.*plain dense tensors"):
        check_circumstances([plain, odd])


def test_attention_without_dropout_draws_nothing(cache: Path) -> None:
    attention = nn.functional.scaled_dot_product_attention
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    fast = compiled(lambda q, k, v: attention(q, k, v) + 0.0, cache, strict=True)
    torch.testing.assert_close(fast(q, k, v), attention(q, k, v))


def test_the_counters_are_a_value() -> None:
    now = counters()
    with pytest.raises(FrozenInstanceError):
        now.built = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        now.fell_back["reason"] = 1  # type: ignore[index]


# --- options -----------------------------------------------------------------------------------

WRONG = [
    ({"bakend": "onnxruntime"}, "the option 'bakend'.*Fix: did you mean backend"),
    ({"backend": "eager"}, "backend='eager'.*expected one of onnxruntime"),
    ({"backend": 3}, "backend=3"),
    ({"cache": ""}, "cache=''"),
    ({"cache": 7}, "cache=7"),
    ({"cache": b"cache"}, "cache=b'cache'"),
    ({"cache": "a\0b"}, "cache='a.x00b'"),
    ({"strict": "yes"}, "strict='yes'.*expected True or False"),
]


@pytest.mark.parametrize(("options", "told"), WRONG, ids=[told[:12] for _, told in WRONG])
def test_unknown_and_wrong_options_are_refused(options: dict[str, object], told: str) -> None:
    with pytest.raises(IncompatibleOptions, match=told):
        read_options(options)


def test_a_mode_is_refused() -> None:
    with pytest.raises(IncompatibleOptions, match=r"mode='max-autotune'.*Fix: leave mode out"):
        read_options(None, "max-autotune")


def test_torch_tells_of_a_refused_option(cache: Path) -> None:
    with pytest.raises(BackendCompilerFailed, match="the option 'bakend'") as caught:
        compiled(Small(), cache, bakend="onnxruntime")(torch.ones(2, 4))
    assert isinstance(caught.value.inner_exception, IncompatibleOptions)


def test_the_entry_point_is_in_the_project_and_leads_to_the_function() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = project["entry-points"]["torch_dynamo_backends"]["fresco_trt"]
    module, _, attribute = named.partition(":")
    assert named == ENTRY_POINT
    assert getattr(import_module(module), attribute) is compile_graph


# --- torch-tensorrt, by a stand-in ---------------------------------------------------------------


def test_torch_tensorrt_is_chosen_on_a_gpu_where_it_is_installed(
    torch_tensorrt: SimpleNamespace,
) -> None:
    assert chosen_library(None, "cuda") == "torch-tensorrt"
    assert chosen_library(None, "cpu") == "onnxruntime"
    assert chosen_library("onnxruntime", "cuda") == "onnxruntime"


def test_without_it_onnxruntime_is_chosen_everywhere() -> None:
    assert chosen_library(None, "cuda") == chosen_library(None, "cpu") == "onnxruntime"


def test_every_library_that_is_offered_is_one() -> None:
    assert "torch-tensorrt" in library_names()
    assert "eager" not in library_names()
    assert all(library(name).name == name for name in library_names())


def test_torch_tensorrt_compiles_saves_and_loads(
    torch_tensorrt: SimpleNamespace, cache: Path
) -> None:
    module, x, before = Small(), torch.randn(2, 4), counters()
    for _ in range(2):
        torch._dynamo.reset()
        fast = compiled(module, cache, backend="torch-tensorrt", strict=True)
        torch.testing.assert_close(fast(x), module(x))
    assert since(before) == (1, 1, 0)
    assert torch_tensorrt.asked == [[(2, 4)]]


def test_what_torch_tensorrt_refuses_is_a_build_error(
    torch_tensorrt: SimpleNamespace, tmp_path: Path
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise RuntimeError("no converter")

    torch_tensorrt.dynamo.compile = stop
    graph = StageGraph(
        name="graph",
        signature=SIGNATURE,
        module=nn.Identity(),
        onnx=None,
        weights=None,
        source=tmp_path,
    )
    with pytest.raises(BuildError, match=r"torch-tensorrt refuses graph: RuntimeError: no conv"):
        library("torch-tensorrt").build(graph, BuildOptions(folder=tmp_path))


def test_a_library_that_is_not_installed_is_an_error_with_the_command(cache: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"pip install 'fresco-trt\[torch-tensorrt\]'"):
        compiled(Small(), cache, backend="torch-tensorrt")(torch.ones(2, 4))
