"""Laws of the inductor backend: equal to eager, one file for many layers and stages, weights once,
and nothing of it loaded where it does not run.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import fresco_trt
from fresco_trt.backends.base import BuildOptions, StageGraph
from fresco_trt.backends.inductor import backend as inductor
from fresco_trt.backends.inductor import build as inductor_build
from fresco_trt.backends.inductor import probe as inductor_probe
from fresco_trt.backends.inductor import unpacking
from fresco_trt.backends.inductor.backend import BLOCKS, HOST, InductorBackend
from fresco_trt.backends.inductor.build import weights_of
from fresco_trt.backends.inductor.naming import file_of
from fresco_trt.backends.inductor.pool import Piece
from fresco_trt.backends.inductor.runtime import needed
from fresco_trt.backends.preparing import prepare
from fresco_trt.backends.transformer import FOLDER, WEIGHTS, SharedTransformers
from fresco_trt.bundle import open_bundle
from fresco_trt.bundle.own_builds import remember
from fresco_trt.errors import (
    BackendUnavailable,
    BuildError,
    EngineFailed,
    EnvironmentMismatch,
    FileMissing,
    IncompatibleOptions,
    NativeCodeNotTrusted,
    UnsupportedPrecision,
)
from fresco_trt.files import process_folder
from fresco_trt.lower import build, gather
from fresco_trt.lower.build import BuildRequest, run
from fresco_trt.lower.weights import write_source
from fresco_trt.models.flux.blocks import Block, cut
from fresco_trt.models.flux.facts import FLUX_TINY
from fresco_trt.models.flux.fusing import fused
from fresco_trt.models.flux.graph import graph_from_signature
from fresco_trt.models.flux.layers import with_blocks
from fresco_trt.models.flux.loading import (
    load_transformer,
    random_transformer,
    transformer_from_folder,
)
from fresco_trt.models.flux.signatures import bypass_signature, full_signature
from fresco_trt.models.hunyuan import blocks as video_blocks
from fresco_trt.models.hunyuan import graph as video_graph
from fresco_trt.models.hunyuan import signatures as video_signatures
from fresco_trt.models.hunyuan.loading import load_transformer as load_video
from fresco_trt.models.weights import bundled_folder
from fresco_trt.plan.signature import GraphSignature
from fresco_trt.verify import verify_bundle
from tests.backends.host_device import HostDevice
from tests.models.hunyuan.small import CLIP, SMALL
from tests.once import compiled_once, compiling_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.slow

TINY = bundled_folder("flux-tiny")
TEXT, TOKENS = FLUX_TINY.text_tokens, 64

SIGNATURES = {
    "full": full_signature(FLUX_TINY, TOKENS, TEXT),
    "feature": full_signature(FLUX_TINY, TOKENS, TEXT, feature=True),
    "residual": full_signature(FLUX_TINY, TOKENS, TEXT, feature=True, site="trunk"),
    "bypass": bypass_signature(FLUX_TINY, TOKENS, TEXT),
    "trunk-bypass": bypass_signature(FLUX_TINY, TOKENS, TEXT, site="trunk"),
    "aligned": full_signature(FLUX_TINY, TOKENS, TEXT, refined=2, feature=True),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """What a bundle's manifest says of an engine, and the graph that it was built from."""

    name: str
    files: tuple[str, ...]
    signature: GraphSignature
    graph: StageGraph
    family: str = "flux"

    def inputs(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(len(self.name))
        specs = self.signature.inputs
        return {spec.name: torch.randn(spec.shape, generator=generator) for spec in specs}

    def expected(self) -> dict[str, Tensor]:
        """Outputs of the graph's own module."""
        with torch.no_grad():
            values = self.graph.module(*self.inputs().values())
        names = [spec.name for spec in self.signature.outputs]
        return dict(zip(names, values, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A bundle, a folder with an engine of every kind, what was told, and what was left elsewhere.

    ``weights`` is what the bundle was built from, and ``request`` how.
    """

    request: BuildRequest
    weights: Path
    folder: Path
    engines: Mapping[str, Engine]
    told: list[tuple[str, float]]
    temporary: list[str]


def stage_graph(name: str, model: Any, source: Path) -> StageGraph:
    signature = SIGNATURES[name]
    module = graph_from_signature(model, signature)
    return StageGraph(
        name=name,
        signature=signature,
        module=module,
        onnx=None,
        weights=None,
        source=source,
        family="flux",
    )


def own_weights(folder: Path) -> Path:
    """The bundled model with values that a compiler could fold into the code, were it to look."""
    shutil.copytree(TINY, folder)
    model = load_transformer(folder, FLUX_TINY)
    for name, parameter in model.get_submodule("transformer_blocks.0").named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    shutil.rmtree(folder / "transformer")
    write_source(model, folder / "transformer")
    return folder


def engines_of(source: Path, folder: Path, told: list[tuple[str, float]]) -> dict[str, Engine]:
    """Every graph of the transformer in ``source``, built in ``folder``."""
    model = transformer_from_folder(source)
    options = BuildOptions(folder=folder, progress=lambda *said: told.append(said), threads=1)
    graphs = [stage_graph(name, model, source) for name in SIGNATURES]
    backend = InductorBackend()
    prepare(backend, graphs, options)
    built = [(graph, backend.build(graph, options)) for graph in graphs]
    return {
        graph.name: Engine(name=graph.name, files=files, signature=graph.signature, graph=graph)
        for graph, files in built
    }


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The process that compiles for all builds of this file."""
    with compiling_helper(tmp_path_factory) as process:
        yield process


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, helper: Any) -> Built:
    """Compiled once for all tests of this file: a part takes seconds."""
    folder = tmp_path_factory.mktemp("inductor")
    temporary, told = folder / "temporary", list[tuple[str, float]]()
    temporary.mkdir()
    weights = own_weights(folder / "weights")
    request = BuildRequest(
        model="flux-tiny",
        stages=1,
        steps=2,
        size=(64, 64),
        weights=str(weights),
        backend="inductor",
        out=folder / "bundle",
    )
    with pytest.MonkeyPatch.context() as patch, compiled_once(tmp_path_factory, helper):
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setenv("TMPDIR", str(temporary))
        # All that is compiled in one go: the bundle has files of these engines.
        (folder / "engines").mkdir()
        engines = engines_of(weights / "transformer", folder / "engines", told)
        run(request, progress=lambda *said: told.append(said))
    return Built(
        request=request,
        weights=weights,
        folder=folder / "engines",
        engines=engines,
        told=told,
        # torch makes a folder of its own when it is imported, which stays empty.
        temporary=[path.name for path in temporary.rglob("*") if path.is_file()],
    )


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Path:
    """A copy of the folder, to be damaged."""
    return shutil.copytree(built.folder, tmp_path / "copy")


def worst(outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest error, relative to the largest value of its output."""
    assert list(outputs) == list(expected)
    errors = [(outputs[n] - expected[n]).abs().max() / expected[n].abs().max() for n in expected]
    return float(max(errors))


def one_by_one(folder: Path) -> BuildOptions:
    """To compile in this process."""
    return BuildOptions(folder=folder, threads=1)


def code_of(files: tuple[str, ...]) -> set[str]:
    return {file for file in files if file.endswith(".pt2")}


# --- parity -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_graph_equals_eager(built: Built, name: str) -> None:
    engine = built.engines[name]
    tracked = {key: value.requires_grad_() for key, value in engine.inputs().items()}
    with InductorBackend().load(built.folder, engine) as runner:
        for _ in range(2):
            outputs = runner(tracked)
            assert worst(outputs, engine.expected()) < 1e-5
            assert not any(value.requires_grad for value in outputs.values())


def test_a_replayed_graph_equals_eager(built: Built) -> None:
    """Plain, captured and replayed, each with inputs of its own, on a device that is the host."""
    engine, device = built.engines["feature"], HostDevice()
    with InductorBackend(device=device).load(built.folder, engine) as runner:
        for scale in (0.5, 2.0, 1.0):
            inputs = engine.inputs()
            outputs = runner(inputs | {"latents": inputs["latents"] * scale})
        assert worst(outputs, engine.expected()) < 1e-5
        assert runner.replays()
    assert device.calls.count("replay") == 2
    device.calls.clear()
    with InductorBackend(cuda_graphs=False, device=device).load(built.folder, engine) as runner:
        assert all(worst(runner(engine.inputs()), engine.expected()) < 1e-5 for _ in range(3))
    assert device.calls == []


def test_strided_inputs_change_nothing(built: Built) -> None:
    engine = built.engines["feature"]
    strided = {n: value.repeat_interleave(2, -1)[..., ::2] for n, value in engine.inputs().items()}
    assert not strided["latents"].is_contiguous()
    with InductorBackend().load(built.folder, engine) as runner:
        assert worst(runner(strided), engine.expected()) < 1e-5


def test_code_built_on_one_thread_runs_on_as_many_as_there_are(built: Built) -> None:
    engine = built.engines["feature"]
    threads = torch.get_num_threads()
    try:
        with InductorBackend().load(built.folder, engine) as runner:
            for number in (1, 2):
                torch.set_num_threads(number)
                assert worst(runner(engine.inputs()), engine.expected()) < 1e-5
    finally:
        torch.set_num_threads(threads)


# --- files ------------------------------------------------------------------------------------


def test_one_file_serves_every_layer_of_its_kind_and_every_graph_of_its_size(built: Built) -> None:
    engines = built.engines
    kinds = [file.rpartition("-")[0] for file in sorted(code_of(engines["full"].files))]
    assert kinds == [
        f"{BLOCKS}/{k}" for k in ("condition", "double-64", "enter-64", "leave-64", "single-64")
    ]
    assert engines["full"].files == engines["feature"].files == engines["residual"].files
    assert code_of(engines["bypass"].files) < code_of(engines["trunk-bypass"].files)
    assert code_of(engines["trunk-bypass"].files) < code_of(engines["full"].files)
    own = code_of(engines["aligned"].files) - code_of(engines["full"].files)
    assert {file.split("-")[1] for file in own} == {"aligned"}
    smaller = bypass_signature(FLUX_TINY, 4, TEXT)
    module = graph_from_signature(transformer_from_folder(built.folder / FOLDER), smaller)
    graph = replace(engines["bypass"].graph, signature=smaller, module=module)
    files = {file_of(part, {}) for part in inductor._parts_of(graph)}
    assert len(files) == 2
    assert len(files & code_of(engines["bypass"].files)) == 1
    found = {str(path.relative_to(built.folder)) for path in built.folder.rglob("*.pt2")}
    assert found == set().union(*(code_of(engine.files) for engine in engines.values()))


def test_files_are_small_and_hold_neither_weights_nor_sources(built: Built) -> None:
    for path in (built.folder / BLOCKS).glob("*.pt2"):
        # Optimised as a user's are, they have half a megabyte.
        assert path.stat().st_size < 3 * 2**20
        with zipfile.ZipFile(path) as package:
            assert not [name for name in package.namelist() if name.endswith((".cpp", ".o"))]
        assert "libstdc++.so.6" in needed(path)


def test_nothing_is_left_beside_the_engines(built: Built) -> None:
    listed = {file for engine in built.engines.values() for file in engine.files}
    found = {str(p.relative_to(built.folder)) for p in built.folder.rglob("*") if p.is_file()}
    assert found == listed
    assert built.temporary == []
    assert {f"{FOLDER}/{WEIGHTS}", f"{FOLDER}/config.json", f"{BLOCKS}/{HOST}"} < listed
    assert all(0.0 <= fraction <= 1.0 for _, fraction in built.told)


def test_an_interrupted_build_leaves_no_code(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(program: Any, *, package_path: str, **options: Any) -> None:
        Path(package_path).write_bytes(b"half")
        raise KeyboardInterrupt

    before = dict(os.environ)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", stop)
    with pytest.raises(KeyboardInterrupt):
        InductorBackend().build(built.engines["full"].graph, one_by_one(tmp_path))
    assert [path.name for path in (tmp_path / BLOCKS).iterdir()] == [HOST]
    assert dict(os.environ) == before


# --- weights ----------------------------------------------------------------------------------


def test_all_stages_and_layers_read_the_weights_where_they_are(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight is changed in place: every engine of the backend sees it, at its next call."""
    held: list[Any] = []
    of = SharedTransformers.of
    monkeypatch.setattr(
        SharedTransformers, "of", lambda self, *given: held.append(of(self, *given)) or held[-1]
    )
    backend, names = InductorBackend(), ("feature", "aligned", "bypass")
    engines = [built.engines[name] for name in names]
    with ExitStack() as scope:
        runners = [scope.enter_context(backend.load(built.folder, each)) for each in engines]
        before = [
            runner(e.inputs())["velocity"].clone()
            for runner, e in zip(runners, engines, strict=True)
        ]
        assert len({id(model) for model in held}) == 1
        with torch.no_grad():
            held[0].proj_out.bias.add_(1.0)
            held[0].single_transformer_blocks[3].proj_out.bias.add_(1.0)
        after = [runner(e.inputs()) for runner, e in zip(runners, engines, strict=True)]
        assert torch.allclose(after[2]["velocity"], before[2] + 1.0, atol=1e-5)
        for engine, old, new in zip(engines[:2], before[:2], after[:2], strict=True):
            assert not torch.allclose(new["velocity"], old + 1.0, atol=1e-3)
            graph = graph_from_signature(held[0], engine.signature)
            with torch.no_grad():
                expected = graph(*engine.inputs().values())
            assert torch.allclose(new["velocity"], expected[0], atol=1e-4)


def test_a_child_process_gives_the_names_of_the_weights(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor_probe, "_PROVEN", set())
    (name,) = (name for name in built.engines["full"].files if "single-64" in name)
    block = transformer_from_folder(built.folder / FOLDER).single_transformer_blocks[0]
    found = inductor_probe.constants_of(built.folder / name, "cuda")
    assert found == {n for n, _ in Block(fused(block)).named_parameters()}


def test_weights_are_let_go_when_the_scope_ends(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own handles stay behind when compiled code is gone; the memory must not."""
    held: list[Any] = []
    uses: list[int] = []
    of = SharedTransformers.of

    def count() -> None:
        storage = held[0].proj_out.weight.untyped_storage()
        uses.append(torch._C._storage_Use_Count(storage._cdata))

    def watched(self: SharedTransformers, *given: Any) -> Any:
        held.append(of(self, *given))
        count()
        return held[0]

    monkeypatch.setattr(SharedTransformers, "of", watched)
    with InductorBackend().load(built.folder, built.engines["bypass"]):
        count()
    count()
    assert uses[0] < uses[1]
    assert uses[2] == uses[0]


def test_opening_again_leaves_no_more_tensors_behind(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch keeps one for each handle; the next opening takes those."""
    engine, counts = built.engines["bypass"], []
    monkeypatch.setattr(inductor, "_EMPTIED", {})  # those of other tests are not told apart
    gc.collect()
    gc.freeze()  # what is there already is not gone through three times
    for _ in range(3):
        with InductorBackend().load(built.folder, engine) as runner:
            assert worst(runner(engine.inputs()), engine.expected()) < 1e-5
        gc.collect()
        kept = (torch.Tensor, torch.UntypedStorage)
        counts.append(sum(issubclass(type(each), kept) for each in gc.get_objects()))
    assert counts[2] == counts[1] > 0


def test_a_file_is_unpacked_once_for_the_life_of_the_process(
    built: Built, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, engine = tmp_path / "unpacked", built.engines["bypass"]
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setattr(process_folder, "_OWN", {})  # what other tests unpacked is elsewhere
    for _ in range(2):
        with InductorBackend().load(copied, engine):
            (own,) = place.iterdir()
            assert len(list(own.iterdir())) == len(code_of(engine.files)) == 2
    for path in own.iterdir():  # as a cleaner of temporary files may do
        shutil.rmtree(path)
    with InductorBackend().load(copied, engine) as runner:
        assert worst(runner(engine.inputs()), engine.expected()) < 1e-5


def test_where_torch_takes_no_unpacked_file_every_layer_reads_the_file_itself(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = built.engines["feature"]
    monkeypatch.setattr(unpacking, "loads_folders", lambda: False)
    monkeypatch.setattr(unpacking, "_members_in", None)
    monkeypatch.setattr(unpacking, "_LIBRARIES", {})
    with InductorBackend().load(built.folder, engine) as runner:
        assert worst(runner(engine.inputs()), engine.expected()) < 1e-5


# --- where it runs ----------------------------------------------------------------------------

MOVED = [
    ({"torch": "2.99.0"}, r"torch 2\.99\.0; this is .* Fix: .*install torch==2\.99\.0"),
    ({"machine": "riscv64"}, "machine riscv64"),
    ({"system": "Windows"}, "system Windows"),
    ({"device": "cuda", "features": ["sm90"]}, "for a GPU; torch finds none .* driver"),
    ({"features": ["amx"]}, "able to amx"),
    ({"features": 1}, "does not say"),
]


@pytest.mark.parametrize(("change", "words"), MOVED)
def test_code_for_another_machine_is_refused_before_it_is_loaded(
    built: Built, copied: Path, change: dict[str, Any], words: str
) -> None:
    path = copied / BLOCKS / HOST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EnvironmentMismatch, match=words):
        InductorBackend().load(copied, built.engines["full"])


# --- refusals ---------------------------------------------------------------------------------


def test_damaged_and_missing_files_are_named(built: Built, copied: Path) -> None:
    engine = built.engines["full"]
    path = copied / next(file for file in engine.files if "double" in file)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(EngineFailed, match=path.name), InductorBackend().load(copied, engine):
        pass
    path.unlink()
    with pytest.raises(FileMissing, match=path.name):
        InductorBackend().load(copied, engine)


def test_code_of_another_transformer_is_refused(built: Built, copied: Path) -> None:
    """File names go by what the code relies on, so code that does not fit is never run."""
    wider = replace(FLUX_TINY, hidden=256, heads=8)
    shutil.rmtree(copied / FOLDER)
    write_source(random_transformer(wider), copied / FOLDER)
    with (
        pytest.raises(EngineFailed, match=r"has no blocks/condition"),
        InductorBackend().load(copied, built.engines["full"]),
    ):
        pass


def test_code_of_blocks_that_were_not_fused_is_refused(built: Built, copied: Path) -> None:
    """A bundle of an older version: its blocks take the weights of each projection."""
    engine = built.engines["full"]
    parts = cut(engine.graph.module, engine.signature).parts
    names = {inductor.file_of(part, {}) for part in parts}
    rest = set(engine.files) - code_of(engine.files)
    older = replace(engine, files=(*rest, *names))
    kinds = sorted(name.split("-")[0] for name in names - code_of(engine.files))
    assert kinds == [f"{BLOCKS}/double", f"{BLOCKS}/single"]
    whole = copied / min(code_of(engine.files))
    for name in names - code_of(engine.files):
        shutil.copyfile(whole, copied / name)
    with (
        pytest.raises(EngineFailed, match=r"has no blocks/double-64.* Fix: .*build it again"),
        InductorBackend().load(copied, older),
    ):
        pass


def test_code_for_other_weights_is_refused(built: Built, copied: Path) -> None:
    engine = built.engines["full"]
    double, single = (
        copied / next(file for file in engine.files if kind in file)
        for kind in ("double", "single")
    )
    shutil.copyfile(double, single)
    with (
        pytest.raises(EngineFailed, match="takes other weights"),
        InductorBackend().load(copied, engine),
    ):
        pass


def test_options_it_cannot_honour_are_refused(built: Built, tmp_path: Path) -> None:
    graph, backend = built.engines["full"].graph, InductorBackend()
    with pytest.raises(IncompatibleOptions, match="kind of machine"):
        backend.build(graph, BuildOptions(folder=tmp_path, targets=("sm89",)))
    for precision in ("int8", "bf16"):
        with pytest.raises(UnsupportedPrecision, match="expected one of fp32"):
            backend.build(graph, BuildOptions(folder=tmp_path, precision=precision))
    assert list(tmp_path.iterdir()) == []
    half = random_transformer(FLUX_TINY, dtype=torch.bfloat16)
    graph = replace(graph, source=write_source(half, tmp_path / "half"))
    with pytest.raises(BuildError, match="stored as BF16; expected F32"):
        backend.build(graph, BuildOptions(folder=tmp_path))


def test_what_the_compiler_raises_fails_the_build(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("no such\n  kernel")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", refuse)
    with pytest.raises(BuildError, match=r"compile condition-.*AssertionError: no such kernel"):
        InductorBackend().build(built.engines["full"].graph, one_by_one(tmp_path))


def test_a_weight_that_became_code_fails_the_build(built: Built) -> None:
    path = built.folder / next(file for file in built.engines["full"].files if "leave" in file)
    other = torch.nn.ModuleDict({"proj_out": torch.nn.Linear(2, 2)})
    with pytest.raises(BuildError, match=r"norm_out\.linear\.bias.* folded in or added"):
        inductor_build._check_constants(other, path, "cpu")


def test_a_missing_compiler_keeps_it_from_building_alone(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    backend, engine = InductorBackend(), built.engines["bypass"]
    (missing,) = backend.check()
    assert "no-such-compiler" in missing.what
    assert missing.only_to_build
    with pytest.raises(BackendUnavailable, match="no-such-compiler"):
        backend.build(engine.graph, BuildOptions(folder=tmp_path))
    with backend.load(built.folder, engine) as runner:
        assert worst(runner(engine.inputs()), engine.expected()) < 1e-5


# --- as a bundle ------------------------------------------------------------------------------


def test_a_bundle_is_verified_and_draws(built: Built) -> None:
    bundle = built.request.out
    assert bundle is not None
    with pytest.raises(NativeCodeNotTrusted):  # this test's cache knows of no build
        fresco_trt.FrescoPipeline.from_bundle(bundle)
    comparison = verify_bundle(bundle, weights=str(built.weights), trust_native_code=True)
    assert comparison.failures == ()
    assert max(error.relative for error in comparison.engines) < 1e-5
    with fresco_trt.FrescoPipeline.from_bundle(bundle, trust_native_code=True) as pipe:
        assert pipe("a red apple", seed=7).images[0].size == (64, 64)


def test_a_bundle_is_reused_on_its_kind_of_machine_only(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert built.request.out is not None
    remember(open_bundle(built.request.out).manifest)
    again = run(built.request)
    assert again.reused
    described = InductorBackend.describe
    machine = described(InductorBackend()).machine
    assert again.bundle.manifest.built.options["machine"] == machine

    def elsewhere(self: InductorBackend) -> Any:
        return replace(described(self), machine="another kind")

    monkeypatch.setattr(InductorBackend, "describe", elsewhere)
    monkeypatch.setattr(build, "_written", lambda *given: again.bundle)
    assert run(built.request).state == "rebuilt: kind of machine differs"


def test_a_quantised_bundle_multiplies_fp8_codes(
    helper: Any,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a star on a plain red background\na cat on a checked blue background\n")
    monkeypatch.setattr(gather, "default_prompts", lambda model: prompts)
    request = BuildRequest(
        model="flux-tiny",
        stages=1,
        steps=3,
        size=(64, 64),
        precision="fp8,force=true",
        weights="random",
        blocks=(1, 1),
        backend="inductor",
        out=tmp_path / "b",
    )
    with compiled_once(tmp_path_factory, helper):
        built = run(request)
    record = built.bundle.manifest.quantized
    assert record is not None
    assert record.products["stage1.full"]["fp8"] == 11
    assert record.bytes <= 0.27 * record.float32_bytes
    assert record.judged_by == "engines"
    stored = {file.path: file.bytes for file in built.bundle.manifest.files}
    weights = next(size for path, size in stored.items() if path.startswith("transformer/diff"))
    kept = 4 * with_blocks(FLUX_TINY, (1, 1)).parameters - record.float32_bytes
    assert weights == pytest.approx(record.bytes + kept, rel=0.01)
    verify_bundle(built.bundle.folder).require()


# --- clips ------------------------------------------------------------------------------------


class Both(nn.Module):
    """A double-stream block, then a single-stream one, of the same inputs."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(
        self, tokens: Tensor, context: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, by: Tensor
    ) -> tuple[Tensor, Tensor]:
        streams = self.first(tokens, context, bias, cos, sin, by)
        found: tuple[Tensor, Tensor] = self.second(*streams, bias, cos, sin, by)
        return found


def test_a_block_of_each_kind_of_hunyuan_video_equals_eager(
    helper: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As one piece, though engines have one for each: that is half of the compiler's work."""
    whole = video_signatures.full_signature(SMALL, CLIP.tokens, SMALL.text_tokens)
    graph = video_graph.graph_from_signature(load_video("random", SMALL), whole)
    parts = {part.kind: part for part in video_blocks.cut(graph, whole, flex=True).parts}
    double, single = parts["double"], parts["single"]
    assert double.signature == single.signature
    blocks, path = Both(double.layers[0], single.layers[0]), tmp_path / "blocks.pt2"
    piece = Piece(layer=blocks, signature=double.signature, path=path)
    untyped: Any = inductor
    with compiled_once(tmp_path_factory, helper):
        untyped.compile_pieces([piece], "cpu", 1, lambda name: None)
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(spec.shape, generator=generator) for spec in double.signature.inputs]
    compiled = inductor.CompiledLayer(unpacking.unpacked(path), weights_of(blocks))
    with torch.no_grad():
        expected = blocks(*inputs)
    for each, other in zip(compiled(*inputs), expected, strict=True):
        torch.testing.assert_close(each, other, atol=1e-4, rtol=1e-5)
