"""A model repository of Triton: its own schema reads it, and its model.py draws what we draw."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format

from fresco_trt.backends.eager import EagerBackend
from fresco_trt.bundle import open_bundle
from fresco_trt.bundle.signature import sign_bundle
from fresco_trt.bundle.trust import Trust
from fresco_trt.cli import main as cli
from fresco_trt.errors import BundleNotSigned, DigestMismatch, FrescoError
from fresco_trt.models.registry import model_facts
from fresco_trt.pipelines.image import FrescoPipeline
from fresco_trt.serve.limits import LONGEST_PROMPT
from fresco_trt.serve.triton_export import Export, config_of, export
from fresco_trt.serve.triton_model import KEY, TritonModel, see_only

PROMPT = "a bell on a plain blue background"
_ERROR = re.compile(r"\Aerror: [^\n]+; expected [^\n]+\. Fix: [^\n]+\n\Z")


# --- Triton's side, as far as model.py sees it ------------------------------------------------


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS = range(7)
    CANCELLED = 7

    def __init__(self, message: str, code: int = UNKNOWN) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: Any = None) -> None:
        self._tensors, self._error = output_tensors or [], error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def error(self) -> TritonError | None:
        found: TritonError | None = self._error
        return found


class InferenceRequest:
    def __init__(self, *tensors: Tensor, cancelled_after: int = 10**9) -> None:
        self._tensors, self._left = tensors, cancelled_after

    def inputs(self) -> tuple[Tensor, ...]:
        return self._tensors

    def is_cancelled(self) -> bool:
        self._left -= 1
        return self._left < 0


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((each for each in request.inputs() if each.name() == name), None)


def utilities() -> ModuleType:
    """A `triton_python_backend_utils` of what is above."""
    module = ModuleType("triton_python_backend_utils")
    for each in (Tensor, TritonError, InferenceResponse, get_input_tensor_by_name):
        setattr(module, each.__name__, each)
    return module


def request(prompt: Any = PROMPT, *, cancelled_after: int = 10**9, **more: Any) -> InferenceRequest:
    """A request as Triton gives it: texts are arrays of bytes."""
    kinds = {"seed": np.uint64, "guidance": np.float32}
    given = {"prompt": prompt, **more}
    tensors = []
    for name, value in given.items():
        if value is None:
            continue
        data = value.encode() if isinstance(value, str) else value
        values = data if isinstance(data, list) else [data]
        tensors.append(Tensor(name, np.array(values, dtype=kinds.get(name, np.object_))))
    return InferenceRequest(*tensors, cancelled_after=cancelled_after)


def schema() -> Any:
    """Triton's protobuf module, without the client around it, which would want gRPC."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or found.origin is None:
        pytest.skip("no Triton schema: pip install tritonclient")
    path = Path(found.origin).parent / "grpc" / "model_config_pb2.py"
    if "model_config_pb2" in sys.modules:
        return sys.modules["model_config_pb2"]
    return loaded(path, "model_config_pb2")


def loaded(path: Path, name: str) -> Any:
    """A module from a file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def configuration(folder: Path) -> Any:
    """A model's configuration, read by Triton's schema."""
    text = (folder / "config.pbtxt").read_text(encoding="ascii")
    return text_format.Parse(text, schema().ModelConfig())


def arguments(folder: Path, kind: str = "CPU", device: str = "0") -> dict[str, str]:
    """What Triton tells an instance."""
    config = json_format.MessageToDict(configuration(folder), preserving_proto_field_name=True)
    return {
        "model_config": json.dumps(config),
        "model_instance_kind": kind,
        "model_instance_name": f"{folder.name}_0_0",
        "model_instance_device_id": device,
        "model_repository": str(folder),
        "model_version": "1",
        "model_name": folder.name,
    }


def instance(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of a model's model.py, made, as Triton does; not initialized."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utilities())
    return loaded(folder / "1" / "model.py", "exported_model").TritonPythonModel()


@pytest.fixture(scope="module")
def model(eager_bundle: Path, mixed_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model over two bundles."""
    repository = tmp_path_factory.mktemp("triton") / "repository"
    export(Export(engines=(eager_bundle, mixed_bundle), out=repository, name="demo"))
    return repository / "demo"


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[Any]:
    """It, initialized."""
    with pytest.MonkeyPatch.context() as patch:
        found = instance(model, patch)
        found.initialize(arguments(model))
        yield found
        found.finalize()


# --- the repository ---------------------------------------------------------------------------


def test_tritons_schema_reads_the_configuration(model: Path) -> None:
    config, kinds = configuration(model), schema()
    assert (config.name, config.backend, config.max_batch_size) == ("demo", "python", 0)
    inputs = {each.name: (each.data_type, list(each.dims), each.optional) for each in config.input}
    text = kinds.TYPE_STRING
    assert inputs == {
        "prompt": (text, [1], False),
        "seed": (kinds.TYPE_UINT64, [1], True),
        "size": (text, [1], True),
        "preset": (text, [1], True),
        "guidance": (kinds.TYPE_FP32, [1], True),
    }
    assert [(each.name, list(each.dims)) for each in config.output] == [("image", [-1, -1, 3])]
    assert [(each.count, each.kind) for each in config.instance_group] == [
        (1, kinds.ModelInstanceGroup.KIND_AUTO)
    ]


def test_every_bundle_is_there_whole_and_has_a_warm_up(
    model: Path, eager_bundle: Path, mixed_bundle: Path
) -> None:
    config = configuration(model)
    named = {"0-64x64": eager_bundle, "1-128x128": mixed_bundle}
    assert [each.name for each in config.model_warmup] == list(named)
    for sample in config.model_warmup:
        copy = open_bundle(model / "1" / "bundles" / sample.name)
        assert copy.manifest == open_bundle(named[sample.name]).manifest
        digest = config.parameters[f"manifest:{sample.name}"].string_value
        assert digest == copy.manifest.digest
        assert sample.batch_size == 1
        said = {name: element(model, each.input_data_file) for name, each in sample.inputs.items()}
        assert said.pop("size") == sample.name.partition("-")[2]
        assert said.pop("preset", None) == copy.plan.preset
        assert said.keys() == {"prompt"}


def element(model: Path, name: str) -> str:
    """A text of a warm-up file, which has one."""
    data = (model / "warmup" / name).read_bytes()
    (length,) = struct.unpack("<I", data[:4])
    assert length == len(data) - 4
    return data[4:].decode()


def test_of_one_size_the_picture_has_that(eager_bundle: Path) -> None:
    text = config_of("one", {"0-64x64": open_bundle(eager_bundle)}, 4)
    config = text_format.Parse(text, schema().ModelConfig())
    assert list(config.output[0].dims) == [64, 64, 3]
    assert config.instance_group[0].count == 4


def test_an_engine_for_gpus_gets_them(eager_bundle: Path) -> None:
    bundle = open_bundle(eager_bundle)
    backend = bundle.manifest.backend.model_copy(update={"name": "tensorrt"})
    manifest = bundle.manifest.model_copy(update={"backend": backend})
    named = SimpleNamespace(manifest=manifest, plan=bundle.plan)
    config = text_format.Parse(config_of("a", {"0": named}, 1), schema().ModelConfig())  # type: ignore[dict-item]
    assert config.instance_group[0].kind == schema().ModelInstanceGroup.KIND_GPU


# --- requests ---------------------------------------------------------------------------------


def test_warm_up_and_requests_draw_what_the_pipeline_draws(
    served: Any, model: Path, eager_bundle: Path
) -> None:
    for sample in configuration(model).model_warmup:
        said = {name: element(model, each.input_data_file) for name, each in sample.inputs.items()}
        (warm,) = served.execute([request(said.pop("prompt"), **said)])
        assert warm.error() is None
    with FrescoPipeline.from_bundle(eager_bundle) as pipe:
        wanted = [np.asarray(pipe(PROMPT, seed=seed).images[0]) for seed in (0, 2**64 - 1)]
    asked = [request(), request(seed=2**64 - 1, size="64x64", preset="turbo")]
    for response, image in zip(served.execute(asked), wanted, strict=True):
        (tensor,) = response.output_tensors()
        assert (tensor.name(), tensor.as_numpy().dtype) == ("image", np.uint8)
        assert np.array_equal(tensor.as_numpy(), image)
    (other,) = served.execute([request(size="128x128")])
    assert other.output_tensors()[0].as_numpy().shape == (128, 128, 3)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "no input prompt"),
    "a size that is not built": ({"size": "96x96"}, "64x64, 128x128"),
    "no size": ({"size": "large"}, "size"),
    "a preset that is not built": ({"preset": "quality"}, "turbo"),
    "no text": ({"prompt": b"\xff\xfe"}, "UTF-8"),
    "a long prompt": ({"prompt": "a" * (4 * LONGEST_PROMPT + 1)}, "bytes"),
    "two prompts": ({"prompt": [b"a", b"b"]}, "2 elements"),
    "no seed": ({"seed": []}, "0 elements"),
    "a guidance out of range": ({"guidance": 1e9}, "guidance"),
    "a guidance that is no number": ({"guidance": float("nan")}, "guidance"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_told_why_and_the_next_is_answered(served: Any, name: str) -> None:
    given, said = WRONG[name]
    wrong = served.execute([request(**given)])[0].error()
    assert wrong.code() == TritonError.INVALID_ARG
    assert said in wrong.message()
    assert wrong.message().isprintable()


def test_errors_are_each_requests_own(served: Any) -> None:
    wrong, right = served.execute([request(size="1x1"), request()])
    assert wrong.error() is not None
    assert right.error() is None


@pytest.mark.parametrize("after", [0, 3])
def test_a_cancelled_request_ends_between_two_steps(served: Any, after: int) -> None:
    asked = request(cancelled_after=after)
    error = served.execute([asked])[0].error()
    assert error.code() == TritonError.CANCELLED
    assert asked._left == -1  # it was not asked again: nothing was drawn after


def test_what_nobody_foresaw_is_logged_and_not_told(
    served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: Any, **more: Any) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(FrescoPipeline, "__call__", fail)
    error = served.execute([request()])[0].error()
    assert error.code() == TritonError.INTERNAL
    assert "secret" not in error.message()
    assert "a secret" in caplog.text


def test_an_end_frees_the_engines(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = instance(model, monkeypatch)
    closed = []
    found._pipelines = SimpleNamespace(close=lambda: closed.append(True))
    found.finalize()
    found.finalize()
    assert closed == [True]
    assert found.execute([request()])[0].error().code() == TritonError.INTERNAL


@pytest.mark.parametrize(
    ("before", "device", "after"),
    [(None, "1", "1"), ("2,3", "1", "3"), ("GPU-aa, GPU-bb", "0", "GPU-aa"), ("", "0", "0")],
)
def test_an_instance_sees_its_own_gpu_alone(before: str | None, device: str, after: str) -> None:
    environment = {} if before is None else {"CUDA_VISIBLE_DEVICES": before}
    see_only(device, environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == after


# --- trust ------------------------------------------------------------------------------------


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager engines count as native code, which nobody here built."""
    monkeypatch.setattr(EagerBackend, "native_code", {".safetensors": "compiled code"})


@pytest.mark.usefixtures("native")
def test_native_code_is_exported_by_who_vouches_for_it_and_then_loaded(
    eager_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["export-triton", "--engines", str(eager_bundle), "--out", str(tmp_path / "r")]
    assert cli.main(command) == 2
    assert "--trust" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    assert cli.main([*command, "--trust"]) == 0
    folder = tmp_path / "r" / "fresco-flux-tiny"
    found = instance(folder, monkeypatch)
    found.initialize(arguments(folder))
    found.finalize()


def test_a_bundle_that_is_not_the_exported_one_is_not_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(model, tmp_path / "demo", copy_function=os.link)
    bundles = folder / "1" / "bundles"
    (bundles / "0-64x64").rename(bundles / "between")
    (bundles / "1-128x128").rename(bundles / "0-64x64")
    (bundles / "between").rename(bundles / "1-128x128")
    with pytest.raises(DigestMismatch, match="which was exported"):
        instance(folder, monkeypatch).initialize(arguments(folder))


def test_a_server_may_ask_for_a_signature(
    eager_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    from tests.serve.keys import new_keys

    private, public = new_keys(tmp_path / "a")
    _, other = new_keys(tmp_path / "b")
    signed = shutil.copytree(eager_bundle, tmp_path / "signed", copy_function=os.link)
    sign_bundle(signed, private)
    told = export(Export(engines=(signed,), out=tmp_path / "r", trust=Trust(verify_key=public)))
    assert told["signed"] == ["0-64x64"]
    folder = Path(told["model"])
    monkeypatch.setenv(KEY, str(public))
    found = instance(folder, monkeypatch)
    found.initialize(arguments(folder))
    found.finalize()
    monkeypatch.setenv(KEY, str(other))
    with pytest.raises(BundleNotSigned):
        instance(folder, monkeypatch).initialize(arguments(folder))
    with pytest.raises(BundleNotSigned):
        export(Export(engines=(signed,), out=tmp_path / "s", trust=Trust(verify_key=other)))
    assert not (tmp_path / "s").exists()


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("--name", "../up"),
        ("--name", ""),
        ("--instances", "0"),
        ("--engines", "nowhere"),
        ("--engines", "a" * 5000),
        ("--trust", "--verify-key", "KEY.pub"),
    ],
)
def test_a_wrong_export_is_refused_in_one_line(
    options: tuple[str, ...], eager_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "repository"
    command = ["export-triton", "--engines", str(eager_bundle), "--out", str(out), *options]
    assert cli.main(command) == 2
    assert _ERROR.match(capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_bundles_that_draw_the_same_are_refused(eager_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(FrescoError, match="two bundles"):
        export(Export(engines=(eager_bundle, eager_bundle), out=tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_a_model_that_edits_is_refused(
    eager_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = replace(model_facts("flux-tiny"), references=1)
    monkeypatch.setattr("fresco_trt.serve.triton_export.model_facts", lambda name: facts)
    with pytest.raises(FrescoError, match="edits pictures"):
        export(Export(engines=(eager_bundle,), out=tmp_path / "r"))
    assert not (tmp_path / "r").exists()


def test_only_an_earlier_export_is_replaced(
    model: Path, eager_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(model, tmp_path / "demo", copy_function=os.link)
    request_of = Export(engines=(eager_bundle,), out=tmp_path, name="demo")
    export(request_of)
    assert [path.name for path in (folder / "1" / "bundles").iterdir()] == ["0-64x64"]
    (folder / "2").mkdir()
    with pytest.raises(FrescoError, match="no earlier export alone"):
        export(request_of)
    (folder / "2").rmdir()
    before = (folder / "config.pbtxt").read_bytes()

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fresco_trt.serve.triton_export.shutil.copyfile", full)
    with pytest.raises(FrescoError, match="full"):
        export(request_of)
    assert (folder / "config.pbtxt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_the_model_that_triton_looks_for_is_ours(model: Path) -> None:
    source = (model / "1" / "model.py").read_text(encoding="utf-8")
    assert "class TritonPythonModel(TritonModel):" in source
    assert {"initialize", "execute", "finalize"} <= vars(TritonModel).keys()
