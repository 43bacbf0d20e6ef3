"""What every test runs under: a clean environment, fixed seeds, no network, no deadline."""

from __future__ import annotations

import gc
import os
import signal
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fresco_trt.plan.stages import Positions
    from tests.preloaded import Preloaded

# A test that took a setting or a cached model from whoever runs it would pass for them alone.
_SCRUBBED = (
    "COLUMNS",
    "FORCE_COLOR",
    "LINES",
    "NO_COLOR",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONWARNINGS",
)
_SCRUBBED_PREFIXES = ("DIFFUSERS_", "FRESCO_", "HF_", "HUGGINGFACE_", "ORT_", "TRANSFORMERS_")

# Of most tests that share a bundle none judges its pictures, and each step of the whole model takes
# three times as long.
_FEW: dict[str, Any] = {"weights": "random", "blocks": (1, 1)}

# Examples are not timed: the machine may be busy. In CI the same examples are drawn every time.
settings.register_profile("fresco", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("fresco")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module, and so before any library reads its settings."""
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in list(os.environ):
        if name in _SCRUBBED or name.startswith(_SCRUBBED_PREFIXES):
            del os.environ[name]
    # Else every process that a test starts compiles all modules of this package anew.
    sys.dont_write_bytecode = False
    hub = TemporaryDirectory(prefix="fresco-trt-hub-")
    config.add_cleanup(hub.cleanup)
    os.environ |= {"HF_HOME": hub.name, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    # Which bundles somebody built is kept there, and engines.
    os.environ["FRESCO_TRT_CACHE"] = f"{hub.name}/fresco-trt"
    # Else each process that compiles tries the C++ compiler on every width of vectors, ten seconds.
    os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"
    # What calls the kernels, 2 s a piece; the kernels are compiled as ever.
    os.environ["AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL"] = "O0"
    # Nothing that a test leaves has to outlast the machine, and each sync waits for the disk.
    config.add_cleanup(partial(setattr, os, "fsync", os.fsync))
    os.fsync = os.fstat  # which knows a closed descriptor too
    # Tracing a graph makes millions of objects that nothing refers to in circles: a sixth of its
    # time went into looking for such.
    gc.set_threshold(200_000, 20, 100)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the pages, and with the servers, which wait while the types are checked beside
    them; then the files that take long, then those that draw and train: begun last, one of them
    would run beside an idle core. The types are asked for at the end.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    draws = {"bench", "models", "pipelines", "training"}

    def place(item: pytest.Item) -> tuple[bool, ...]:
        name, folder = item.path.name, item.nodeid.split("/")[1]
        first = name == "test_docs.py", folder == "serve", item.path in slow, folder in draws
        return name == "test_types.py", *(not each for each in first)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What was imported and collected stays: a second of each test that asks for a collection went
    into looking through it.
    """
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with the reason, what needs a device or a library that is not here."""
    if item.get_closest_marker("rtx") and find_spec("tensorrt_rtx") is None:
        pytest.skip("the TensorRT-RTX library is not installed")
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("no CUDA device")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """pytest-randomly seeds Python and NumPy; torch, only where a test has imported it."""
    if "torch" in sys.modules:
        torch: Any = sys.modules["torch"]
        torch.default_generator.manual_seed(0)
        # A device that is not in use has torch's own fixed seed. ``torch.manual_seed`` would note
        # the call for each kind of device, with a traceback: 2 ms for each of thousands of tests.
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(0)


@pytest.fixture(scope="session", autouse=True)
def _types(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Where they are to be checked, beside all other tests."""
    if not any(item.name == "test_mypy_finds_nothing" for item in request.session.items):
        yield
        return
    from tests.mypy_beside import begun
    from tests.once import shared_folder

    with begun(shared_folder(tmp_path_factory)):
        yield


@pytest.fixture(scope="session")
def tiny_transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers transformer folder with the dimensions of flux-tiny and seeded random weights.

    Shared by the whole session: read it, never write to it.
    """
    from fresco_trt.lower.weights import write_source
    from fresco_trt.models.flux.loading import random_transformer
    from fresco_trt.models.registry import model_facts

    folder = tmp_path_factory.mktemp("flux-tiny") / "transformer"
    return write_source(random_transformer(model_facts("flux-tiny"), seed=0), folder)


@pytest.fixture(scope="session")
def onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines for ONNX Runtime of random weights and a block of each kind: three stages of turbo at
    64x64. Exporting takes seconds a block.

    Shared by the whole session: read it, never write to it.
    """
    return _built_once(
        tmp_path_factory, "onnx", lambda folder: _turbo_bundle(folder, "onnxruntime", **_FEW)
    )


@pytest.fixture(scope="session")
def eager_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as eager engines, of such weights. Read only."""
    return _built_once(
        tmp_path_factory, "eager", lambda folder: _turbo_bundle(folder, "eager", **_FEW)
    )


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same plan as eager engines of the bundled weights, which a pipeline of diffusers has, and
    whose pictures can be told apart. Read only.
    """
    return _built_once(tmp_path_factory, "demo", lambda folder: _turbo_bundle(folder, "eager"))


@pytest.fixture(scope="session")
def mixed_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eager engines of random weights and a block of each kind at 128x128: half size, two mixed
    stages, and full size.

    Shared by the whole session: read it, never write to it.
    """
    return _built_once(
        tmp_path_factory, "mixed-eager", lambda folder: _mixed_bundle(folder, "eager")
    )


@pytest.fixture(scope="session")
def mixed_onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines for ONNX Runtime of random weights and a block of each kind at 128x128: half size, a
    mixed stage, and full size. Read only.
    """
    return _built_once(
        tmp_path_factory, "mixed-onnx", lambda folder: _mixed_bundle(folder, "onnxruntime")
    )


@pytest.fixture(scope="session")
def aligned_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That plan with phase-aligned attention in its mixed stages, as eager engines. Read only."""
    return _built_once(
        tmp_path_factory,
        "aligned-eager",
        lambda folder: _mixed_bundle(folder, "eager", positions="aligned"),
    )


@pytest.fixture(scope="session")
def aligned_onnx_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as engines for ONNX Runtime, of such weights. Read only."""
    return _built_once(
        tmp_path_factory,
        "aligned-onnx",
        lambda folder: _mixed_bundle(folder, "onnxruntime", positions="aligned"),
    )


@pytest.fixture(scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preloaded]:
    """One process that has imported what programs of this package import."""
    from tests.once import shared_folder
    from tests.preloaded import Preloaded

    scratch = tmp_path_factory.mktemp("preloaded")
    with Preloaded(shared_folder(tmp_path_factory), scratch) as process:
        yield process


@pytest.fixture(scope="module", name="traced_once")
def _traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For a file of tests that are about what is done with a traced graph."""
    from tests.once import traced_once

    with traced_once(tmp_path_factory):
        yield


@pytest.fixture(scope="module", name="operators_once")
def _operators_once() -> Iterator[None]:
    """For a file of tests that trace graphs."""
    from tests.once import operators_once

    with operators_once():
        yield


@pytest.fixture(scope="module", autouse=True)
def _operators_again(request: pytest.FixtureRequest) -> None:
    """For any other file, once one has imported what traces: it may trace a graph too."""
    if "torch.onnx._internal.exporter._registration" in sys.modules:
        request.getfixturevalue("operators_once")


def _built_once(
    temporary: pytest.TempPathFactory, name: str, build: Callable[[Path], Path]
) -> Path:
    """The bundle of that name, built by the first process of the run that asks for it."""
    from tests.once import locked, shared_folder, traced_once

    folder = shared_folder(temporary) / f"once-{name}"
    folder.mkdir(exist_ok=True)
    with traced_once(temporary), locked(folder):
        return folder / "bundle" if (folder / "bundle").exists() else build(folder)


def _mixed_bundle(folder: Path, backend: str, positions: Positions = "fine") -> Path:
    from fresco_trt.lower.build import BuildRequest, run
    from fresco_trt.models.registry import model_facts
    from fresco_trt.plan.making import plan_from_preset
    from fresco_trt.plan.presets import Preset

    preset = Preset(
        steps=(3, 2, 2, 2),
        switch=(0.8, 0.7, 0.5),
        refine=((("converged", 0.25), ("edge", 0.125)), (("changing", 0.25),), ()),
        window=2,
        positions=positions,
    )
    if backend == "onnxruntime":  # exporting another mixed stage shows nothing more
        preset = replace(preset, steps=(3, 2, 2), switch=(0.8, 0.5), refine=(preset.refine[0], ()))
    plan = plan_from_preset(model_facts("flux-tiny"), preset, size=(128, 128))
    request = BuildRequest(plan=plan, backend=backend, out=folder / "bundle", **_FEW)
    return run(request).bundle.folder


def _turbo_bundle(folder: Path, backend: str, **options: Any) -> Path:
    from fresco_trt.lower.build import BuildRequest, run
    from tests.shallow import short_turbo

    request = BuildRequest(plan=short_turbo(), backend=backend, out=folder / "bundle", **options)
    return run(request).bundle.folder
