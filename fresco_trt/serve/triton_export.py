"""Writes a model repository of Triton Inference Server around bundles.

One model of Triton's Python backend is the whole pipeline. A stage hands over to the next what no
ensemble of models could: noise, tokens and a cache. Everything a server needs lies in the model's
folder but this package itself.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fresco_trt import __version__
from fresco_trt.backends import backend
from fresco_trt.bundle import open_bundle
from fresco_trt.bundle.signature import check_signature, is_signed
from fresco_trt.bundle.trust import NO_TRUST, Trust, require_trust
from fresco_trt.errors import IncompatibleOptions, OutputNotWritable, PlanError, error_context
from fresco_trt.files.atomic_folder import create_partial, put_in_place, remove, sweep, written_to
from fresco_trt.files.canonical_json import MANIFEST_NAME, SIGNATURE_NAME, quoted
from fresco_trt.models.registry import model_facts
from fresco_trt.pipelines.checks import check_pictures
from fresco_trt.pipelines.environment import check_environment
from fresco_trt.pipelines.several import WARMING_PROMPT, FrescoPipelines
from fresco_trt.plan.sizes import format_size
from fresco_trt.serve.triton_model import BUNDLES, MANIFEST

if TYPE_CHECKING:
    from fresco_trt.bundle import Bundle

VERSION = "1"
MARK = "# Written by fresco-trt export-triton"
MOST_INSTANCES = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_OWN = {"config.pbtxt", VERSION, "warmup", f"{VERSION}/model.py", f"{VERSION}/{BUNDLES}"}

_MODEL_PY = '''"""Written by fresco-trt export-triton; needs the package fresco_trt."""

import triton_python_backend_utils

from fresco_trt.serve.triton_model import TritonModel


class TritonPythonModel(TritonModel):
    """What Triton's Python backend looks for."""

    utils = triton_python_backend_utils
'''


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What to write: bundles of one model, the repository's folder, the name in it (None: after the
    model), how many instances a device gets, and what is vouched for.

    Raises PlanError for another name or number.
    """

    engines: tuple[Path, ...]
    out: Path
    name: str | None = None
    instances: int = 1
    trust: Trust = NO_TRUST

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise PlanError(
                f"--name {self.name}",
                expected="letters, digits, and . _ - behind them",
                fix="pass --name flux",
            )
        if not 1 <= self.instances <= MOST_INSTANCES:
            raise PlanError(
                f"--instances {self.instances}",
                expected=f"from 1 to {MOST_INSTANCES}",
                fix="pass --instances 1",
            )


def export(request: Export) -> dict[str, Any]:
    """Write ``request.out``/<name>; what was written.

    Raises a BundleError leaf, NativeCodeNotTrusted among them: a server does not ask again.
    IncompatibleOptions for bundles of several models or two that draw the same, OutputNotWritable
    or DiskFull; the repository is then as it was.
    """
    bundles = [_opened(folder, request.trust) for folder in request.engines]
    _require_drawing(bundles)
    _require_one_model(bundles)
    FrescoPipelines(bundles)  # loads nothing, and refuses two that draw the same
    named = {_folder_name(number, bundle): bundle for number, bundle in enumerate(bundles)}
    name = request.name or _model_name(bundles[0].manifest.model.name)
    target = request.out.absolute() / name
    with error_context(f"Triton model {quoted(str(target))}"):
        _write(target, named, config_of(name, named, request.instances))
    return {
        "model": str(target),
        "name": name,
        "bundles": {folder: bundle.manifest.digest for folder, bundle in named.items()},
        "signed": [folder for folder, bundle in named.items() if is_signed(bundle)],
    }


def _opened(folder: Path, trust: Trust) -> Bundle:
    """A bundle that is whole, drawable by this version and trusted. What this machine lacks to run
    it is the server's business.
    """
    bundle = open_bundle(folder, environment=check_environment)
    require_trust(bundle, backend(bundle.manifest.backend.name).native_code, trust)
    if trust.verify_key is not None:
        check_signature(bundle, trust.verify_key)
    return bundle


def _require_drawing(bundles: Sequence[Bundle]) -> None:
    for bundle in bundles:
        check_pictures(bundle.plan)
        if model_facts(bundle.manifest.model.name).references:
            raise IncompatibleOptions(
                f"a bundle of {bundle.manifest.model.name}, which edits pictures",
                expected="bundles that draw from a prompt alone: requests have no picture in them",
                fix="leave it out, and edit with 'fresco-trt edit'",
            )


def _require_one_model(bundles: Sequence[Bundle]) -> None:
    names = dict.fromkeys(bundle.manifest.model.name for bundle in bundles)
    if len(names) > 1:
        raise IncompatibleOptions(
            f"bundles of {' and '.join(names)}",
            expected="bundles of one model: clients of Triton name the model",
            fix="export each model by itself, with its own --name",
        )


def _folder_name(number: int, bundle: Bundle) -> str:
    return f"{number}-{format_size(bundle.plan.size)}"


def _model_name(model: str) -> str:
    return f"fresco-{re.sub(r'[^A-Za-z0-9_.-]+', '-', model)}"[:100]


# --- the configuration ------------------------------------------------------------------------


def config_of(name: str, bundles: Mapping[str, Bundle], instances: int) -> str:
    """``config.pbtxt`` of a model over bundles, by the names of their folders."""
    first = next(iter(bundles.values()))
    facts = model_facts(first.manifest.model.name)
    sizes = {bundle.plan.size for bundle in bundles.values()}
    width, height = next(iter(sizes))[:2] if len(sizes) == 1 else (-1, -1)
    texts = [("prompt", "TYPE_STRING", False), ("seed", "TYPE_UINT64", True)]
    texts += [("size", "TYPE_STRING", True), ("preset", "TYPE_STRING", True)]
    if facts.guidance:
        texts.append(("guidance", "TYPE_FP32", True))
    parts = [
        f"{MARK} {__version__}",
        f"name: {_quoted(name)}",
        'backend: "python"',
        "max_batch_size: 0",
        *(_input(*each) for each in texts),
        f'output [ {{ name: "image" data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] }} ]',
        f"instance_group [ {{ count: {instances} kind: {_kind(first)} }} ]",
        *(_warmup(folder, bundle) for folder, bundle in bundles.items()),
        *(
            f"parameters {{ key: {_quoted(MANIFEST + folder)} "
            f"value {{ string_value: {_quoted(bundle.manifest.digest)} }} }}"
            for folder, bundle in bundles.items()
        ),
    ]
    return "\n".join(parts) + "\n"


def _kind(bundle: Bundle) -> str:
    """TensorRT has a GPU only; what others run on is seen where they are loaded."""
    return "KIND_GPU" if bundle.manifest.backend.name.startswith("tensorrt") else "KIND_AUTO"


def _input(name: str, kind: str, optional: bool) -> str:
    more = " optional: true" if optional else ""
    return f"input [ {{ name: {_quoted(name)} data_type: {kind} dims: [ 1 ]{more} }} ]"


def _warmup(folder: str, bundle: Bundle) -> str:
    """Requests before the model is ready: two, since a GPU's second one captures CUDA graphs."""
    inputs = [
        f"inputs {{ key: {_quoted(name)} value {{ data_type: TYPE_STRING dims: [ 1 ] "
        f"input_data_file: {_quoted(file)} }} }}"
        for name, file in _warmup_files(folder, bundle)
    ]
    sample = f"name: {_quoted(folder)} batch_size: 1 count: 2 {' '.join(inputs)}"
    return f"model_warmup [ {{ {sample} }} ]"


def _warmup_files(folder: str, bundle: Bundle) -> Iterator[tuple[str, str]]:
    yield "prompt", "prompt"
    yield "size", f"size-{folder}"
    if bundle.plan.preset is not None:
        yield "preset", f"preset-{folder}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format; all that is quoted here is ASCII."""
    return json.dumps(text)


# --- the folder -------------------------------------------------------------------------------


def _write(target: Path, bundles: Mapping[str, Bundle], config: str) -> None:
    with written_to(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target)
        _require_replaceable(target)
        held = create_partial(target)
    try:
        with written_to(target):
            _fill(held.folder, bundles, config)
            _require_replaceable(target)
            put_in_place(held, target)
    finally:
        if held.folder.exists():
            remove(held.folder)
        held.release()


def _fill(folder: Path, bundles: Mapping[str, Bundle], config: str) -> None:
    (folder / "config.pbtxt").write_text(config, encoding="ascii")
    version = folder / VERSION
    version.mkdir()
    (version / "model.py").write_text(_MODEL_PY, encoding="utf-8")
    warmup = folder / "warmup"
    warmup.mkdir()
    (warmup / "prompt").write_bytes(_string(WARMING_PROMPT))
    for name, bundle in bundles.items():
        for kind, file in _warmup_files(name, bundle):
            if kind != "prompt":
                said = format_size(bundle.plan.size) if kind == "size" else str(bundle.plan.preset)
                (warmup / file).write_bytes(_string(said))
        _copy(bundle, version / BUNDLES / name)


def _string(text: str) -> bytes:
    """An element of TYPE_STRING as Triton reads it from a file: its length, then its bytes."""
    data = text.encode()
    return struct.pack("<I", len(data)) + data


def _copy(bundle: Bundle, folder: Path) -> None:
    """The bundle's files and no other; what arrived is checked as any bundle is."""
    names = [MANIFEST_NAME, *(file.path for file in bundle.manifest.files)]
    if is_signed(bundle):
        names.append(SIGNATURE_NAME)
    with bundle.unchanged():
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.folder / name, folder / name)
    open_bundle(folder)


def _require_replaceable(target: Path) -> None:
    """Refuse to replace anything but an earlier export, with nothing added to it."""
    if not target.is_symlink() and not target.exists():
        return
    if target.is_dir() and not target.is_symlink() and _is_ours(target):
        return
    raise OutputNotWritable(
        f"{quoted(str(target))} is there, and is no earlier export alone",
        expected="a new name, or a model that 'fresco-trt export-triton' wrote",
        fix="pass another --name or --out, or move away what is there",
    )


def _is_ours(target: Path) -> bool:
    config = target / "config.pbtxt"
    if not config.is_file():
        return False
    with config.open("rb") as file:
        if file.read(len(MARK)) != MARK.encode():
            return False
    found = {path.name for path in target.iterdir()}
    inside = {f"{VERSION}/{path.name}" for path in (target / VERSION).glob("*")}
    return found | inside <= _OWN | {f"{VERSION}/__pycache__"}
