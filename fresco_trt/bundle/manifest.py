"""The bundle's manifest: its schema, its bytes, and how untrusted bytes become one.

In the data path this is the page that ``lower/`` signs and ``run/`` reads; ``bundle.py`` puts it
on disk and checks the files against it. The format is described in ``docs/bundle-format.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PureWindowsPath
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    ValidationError,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from fresco_trt.errors import FrescoError, ManifestInvalid, PathEscape, SchemaTooNew
from fresco_trt.files.canonical_json import (
    MANIFEST_NAME,
    REBUILD,
    SIGNATURE_NAME,
    bounded_json,
    build_key,
    clipped,
    commonest,
    invalid,
    quoted,
    require_digest,
)
from fresco_trt.plan.config import TargetConfig
from fresco_trt.plan.signature import GraphSignature
from fresco_trt.plan.stages import StagePlan

SCHEMA_VERSION: Final = 2
MAX_FILES = 10_000

_Parsed = TypeVar("_Parsed", StagePlan, GraphSignature)


# --- field types ------------------------------------------------------------------------------


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def _parser(kind: type[_Parsed], what: str) -> Callable[[object], _Parsed]:
    """A validator that takes the object itself or its JSON form."""

    def parse(value: object) -> _Parsed:
        if isinstance(value, kind):
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("invalid_part", "{what} as an object", {"what": what})
        try:
            return kind.from_json(value)
        except FrescoError as error:
            said = {"given": error.given, "what": error.expected}
            raise PydanticCustomError("invalid_part", "{what}", said) from error

    return parse


def _target(value: object) -> TargetConfig:
    """The object itself, or the one that a text spells."""
    if not isinstance(value, str | TargetConfig):
        raise PydanticCustomError("invalid_part", "a target as a text")
    try:
        return TargetConfig.of(value)
    except FrescoError as error:
        said = {"given": error.given, "what": error.expected}
        raise PydanticCustomError("invalid_part", "{what}", said) from error


def _without_machine_paths(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """A bundle is shipped: where it was built, and by whom, is not part of it."""
    for text in _texts(value):
        if _MACHINE_PATH.search(text):
            given = {"given": quoted(text)}
            raise PydanticCustomError("machine_path", "no paths of the building machine", given)
    return value


_MACHINE_PATH = re.compile(r"(?:^|[\s=,;'\"])(?:/+\w|~|\\\\\w|[A-Za-z]:[\\/])|file:/")


def _texts(value: JsonValue) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]
ModelName = Annotated[str, Field(min_length=1, max_length=400)]
FilePath = Annotated[str, Field(min_length=1, max_length=1000)]
Count = Annotated[int, Field(ge=0)]
Details = Annotated[dict[str, JsonValue], AfterValidator(_without_machine_paths)]
Precision = Literal["fp32", "bf16", "fp16", "fp8", "int8"]
QUANTISED: Final = ("fp8", "int8")
PlanField = Annotated[
    StagePlan,
    PlainValidator(_parser(StagePlan, "a stage plan")),
    PlainSerializer(lambda plan: plan.to_json()),
]
TargetField = Annotated[
    TargetConfig, PlainValidator(_target), PlainSerializer(lambda target: str(target))
]
SignatureField = Annotated[
    GraphSignature,
    PlainValidator(_parser(GraphSignature, "a graph signature")),
    PlainSerializer(lambda signature: signature.to_json()),
]


# --- the schema -------------------------------------------------------------------------------


class FileRecord(_Record):
    """One data file: POSIX path relative to the bundle, size in bytes, SHA-256 in hex."""

    path: FilePath
    bytes: Count
    sha256: Sha256


class ModelRecord(_Record):
    """The model: its registered name, digest of its weights, and its configuration (no machine
    paths).
    """

    name: ModelName
    weights_sha256: Sha256
    config: Details


class BackendRecord(_Record):
    """The engine library, and what it built for, as ``--target`` spells it; ``library_version`` is
    null only where a library has none.
    """

    name: Name
    library: Name
    library_version: Name | None
    target: TargetField


class EngineRecord(_Record):
    """One engine: its name, the family whose code it is of, the files it is loaded from (relative)
    and its static signature.
    """

    name: Name
    family: Name
    files: tuple[FilePath, ...]
    signature: SignatureField


class QuantRecord(_Record):
    """What was quantised, how, and how well.

    ``kept`` are patterns of the layers left alone; ``bytes`` what the others' codes and scales
    take, ``float32_bytes`` what their weights would take in float32; ``products`` the matrix
    products of each engine by precision. ``ssim`` is the mean, ``lowest`` the least likeness of
    ``prompts`` pictures to those of the same plan unquantised, drawn by the engines or, where the
    building machine could not run them, by the simulation; ``forced`` if ``ssim`` is under the
    ``threshold``.
    """

    recipe: Name
    kept: tuple[Name, ...]
    amax_sha256: Sha256
    bytes: Count
    float32_bytes: Annotated[int, Field(gt=0)]
    products: dict[Name, dict[Name, Count]]
    prompts: Annotated[int, Field(gt=0)]
    ssim: float
    lowest: float
    threshold: float
    judged_by: Literal["engines", "simulation"]
    errors: dict[Name, float]
    forced: bool


class PipelineRecord(_Record):
    """Text encoders, decoder and scheduler in the diffusers folder layout.

    ``folder`` is relative to the bundle. ``digest`` is
    :func:`fresco_trt.files.digests.folder_digest` of that folder. ``parts`` names the entries of
    the folder that the digest covers; empty means all of it.
    """

    folder: FilePath
    digest: Sha256
    parts: tuple[Name, ...] = ()


class BuiltRecord(_Record):
    """How the bundle came to be: versions, wall-clock seconds, resolved command options."""

    version: Name
    python: Name
    torch: Name | None
    seconds: Annotated[float, Field(ge=0)]
    options: Details


class ManifestDraft(_Record):
    """Everything a builder knows before the files are hashed.

    Made from Python objects; a wrong value raises ``pydantic.ValidationError`` (a ValueError),
    because a builder that fills it wrongly is a programming mistake.
    """

    model: ModelRecord
    plan: PlanField
    text_tokens: Annotated[int, Field(gt=0)]
    precision: Precision
    calibration: Sha256 | None
    quantized: QuantRecord | None = None
    backend: BackendRecord
    engines: Annotated[tuple[EngineRecord, ...], Field(min_length=1)]
    pipeline: PipelineRecord
    built: BuiltRecord
    key: Sha256


class Manifest(ManifestDraft):
    """The whole of ``manifest.json``; ``files`` lists every file but the manifest itself.

    ``digest`` is the manifest's own (:func:`seal`): a damaged number is found, wherever it is.
    """

    schema_version: Literal[2]
    files: Annotated[tuple[FileRecord, ...], Field(max_length=MAX_FILES)]
    digest: Sha256

    def to_bytes(self) -> bytes:
        """Deterministic: keys sorted, files in their order, fixed separators, final newline."""
        fields = self.model_dump(mode="json")
        text = json.dumps(fields, sort_keys=True, indent=1, allow_nan=False)
        return (text + "\n").encode("ascii")


def finished(draft: ManifestDraft, files: Iterable[FileRecord]) -> Manifest:
    """The draft completed with schema version, file list (sorted by path) and own digest."""
    fields = {name: getattr(draft, name) for name in ManifestDraft.model_fields}
    ordered = tuple(sorted(files, key=lambda file: file.path))
    bare = Manifest(schema_version=SCHEMA_VERSION, files=ordered, digest="0" * 64, **fields)
    return bare.model_copy(update={"digest": seal(bare.model_dump(mode="json"))})


def seal(fields: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of a manifest's fields, all but ``digest`` itself."""
    return build_key({name: value for name, value in fields.items() if name != "digest"})


# --- reading ----------------------------------------------------------------------------------


def parse_manifest(data: bytes) -> Manifest:
    """A manifest from untrusted bytes: bounds, then schema version, schema, paths, references.

    Raises ManifestInvalid (not JSON, out of bounds, an older schema, inconsistent),
    SchemaTooNew, PathEscape for a path that could leave the bundle, and DigestMismatch for a
    manifest that was changed after it was sealed.
    """
    raw = bounded_json(data)
    _check_version(raw)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        _raise_invalid(error)
    _check_paths(manifest)
    _check_references(manifest)
    _check_printable(raw)
    require_digest(MANIFEST_NAME, seal(raw), manifest.digest)
    return manifest


def _check_printable(raw: dict[str, Any]) -> None:
    """No name can move a cursor, set a clipboard or turn the order of letters where it is shown."""
    for text in _texts(raw):
        if not text.isprintable():
            invalid(f"the text {clipped(text)!a}", "text of printable characters")


def _check_version(raw: dict[str, Any]) -> None:
    version = raw.get("schema_version")
    if type(version) is not int or version < 1:
        invalid(f"schema_version is {quoted(version)}", f"an integer from 1 to {SCHEMA_VERSION}")
    if version < SCHEMA_VERSION:
        raise ManifestInvalid(
            f"schema_version is {version}, of an earlier fresco-trt",
            expected=f"{SCHEMA_VERSION}",
            fix="build the bundle again with 'fresco-trt build'",
        )
    if version > SCHEMA_VERSION:
        raise SchemaTooNew(
            f"schema_version is {version}",
            expected=f"at most {SCHEMA_VERSION}",
            fix="update fresco-trt, or build the bundle again with this version",
        )


def _check_paths(manifest: Manifest) -> None:
    for file in manifest.files:
        check_path(file.path)
    for engine in manifest.engines:
        for path in engine.files:
            check_path(path)
    for part in manifest.pipeline.parts:
        check_path(part)
    check_path(manifest.pipeline.folder)


def check_path(path: str) -> None:
    """Accept only a plain relative POSIX path of printable names; otherwise raise PathEscape."""
    windows = PureWindowsPath(path)
    plain = path.isprintable() and "\\" not in path and not (windows.drive or windows.root)
    if not plain or any(part in ("", ".", "..") for part in path.split("/")):
        raise PathEscape(
            f"the path {quoted(path)}",
            expected="a path inside the bundle folder, like 'name' or 'folder/name'",
            fix=f"do not use this bundle; {REBUILD}",
        )


def _check_references(manifest: Manifest) -> None:
    listed = _distinct("file", [file.path for file in manifest.files])
    _distinct("engine", [engine.name for engine in manifest.engines])
    for name in {MANIFEST_NAME, SIGNATURE_NAME} & listed:
        invalid(f"files lists {name!r}", "every file but the manifest and its signature")
    if manifest.plan.model != manifest.model.name:
        invalid(f"a plan for {quoted(manifest.plan.model)}", f"{quoted(manifest.model.name)}")
    quantised = manifest.precision in QUANTISED
    if quantised != (manifest.quantized is not None):
        given = f"precision {manifest.precision} with{'out' if quantised else ''} 'quantized'"
        invalid(given, f"'quantized' for {' and '.join(QUANTISED)}, and null for the others")
    record = manifest.quantized
    if record is not None and not record.products.keys() <= record.errors.keys():
        invalid("'quantized' has no error of an engine", "one of each engine in 'products'")
    for engine in manifest.engines:
        for path in engine.files:
            if path not in listed:
                given = f"engine {quoted(engine.name)} uses {quoted(path)}"
                invalid(given, "only files that 'files' lists")


def _distinct(what: str, names: list[str]) -> frozenset[str]:
    distinct = frozenset(names)
    if len(distinct) != len(names):
        invalid(f"{what} {quoted(commonest(names))} is listed twice", "every name once")
    return distinct


def _raise_invalid(error: ValidationError) -> NoReturn:
    first, *others = error.errors(include_url=False)
    given, expected = _said(first)
    more = f" (and {len(others)} more)" if others else ""
    raise ManifestInvalid(given + more, expected=expected, fix=REBUILD) from error


def _said(detail: ErrorDetails) -> tuple[str, str]:
    field = clipped(".".join(str(part) for part in detail["loc"])) or MANIFEST_NAME
    if detail["type"] == "missing":
        return f"field {field} is missing", "every field of the schema"
    if detail["type"] == "extra_forbidden":
        return f"field {quoted(field)} is unknown", f"the fields of schema {SCHEMA_VERSION} only"
    given = detail.get("ctx", {}).get("given")
    expected = detail["msg"].removeprefix("Input should be ")
    return f"{field}: {clipped(given) if given else quoted(detail['input'])}", clipped(expected)
