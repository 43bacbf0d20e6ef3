"""How long equal engines took to build before, as the manifests of earlier bundles say.

Beside the dry run: a bundle's manifest is the record, so that nothing else has to be kept. Read
where a build would put its bundle, and in the folders beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fresco_trt.bundle.manifest import Manifest, parse_manifest
from fresco_trt.errors import BundleError
from fresco_trt.files.canonical_json import MANIFEST_NAME, MAX_MANIFEST_BYTES
from fresco_trt.lower.layout import graph_of
from fresco_trt.plan.depth import format_blocks

if TYPE_CHECKING:
    from fresco_trt.lower.request import Resolved
    from fresco_trt.plan.signature import GraphSignature

SECONDS = "engine_seconds"
"""Option of a manifest's ``built`` record: wall seconds that the library took, by graph name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """An earlier build of an equal engine: the wall ``seconds`` of what it was built from, which
    other stages may share, without the export; its bundle's name; and that whole build's seconds.
    """

    seconds: float
    bundle: str
    bundle_seconds: float

    def to_json(self) -> dict[str, object]:
        """``{seconds, bundle, bundle_seconds}``."""
        return asdict(self)


def earlier_builds(resolved: Resolved) -> Mapping[GraphSignature, Earlier]:
    """The newest earlier build of each signature, of the same model and depth, by the same backend
    in the same precision and layout for the same targets.

    Folders that cannot be read, hold no manifest or a broken one are no earlier builds. No file is
    hashed and nothing is written.
    """
    found: dict[GraphSignature, Earlier] = {}
    for folder, manifest in _newest_last(resolved.out):
        if _is_alike(manifest, resolved):
            found.update(_builds_of(folder, manifest))
    return found


def _newest_last(out: Path) -> Iterator[tuple[Path, Manifest]]:
    paths = {out / MANIFEST_NAME, *_beside(out)}
    for path in sorted(paths, key=lambda path: (_modified(path), path)):
        manifest = _manifest_at(path)
        if manifest is not None:
            yield path.parent, manifest


def _manifest_at(path: Path) -> Manifest | None:
    try:
        if not path.is_file():  # opening a pipe would wait for whoever writes into it
            return None
        with path.open("rb") as file:
            return parse_manifest(file.read(MAX_MANIFEST_BYTES + 1))
    except (OSError, BundleError):
        return None


def _beside(out: Path) -> list[Path]:
    try:
        return list(out.parent.glob(f"[!.]*/{MANIFEST_NAME}"))
    except OSError:
        return []


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _is_alike(manifest: Manifest, resolved: Resolved) -> bool:
    blocks = None if resolved.blocks is None else format_blocks(resolved.blocks)
    return (
        manifest.model.name == resolved.facts.name
        and manifest.built.options.get("blocks") == blocks
        and manifest.backend.target == resolved.target
        and manifest.backend.name == resolved.backend.name
        and manifest.precision == resolved.quant.precision
    )


def _builds_of(folder: Path, manifest: Manifest) -> Iterator[tuple[GraphSignature, Earlier]]:
    """What a manifest says, as far as it says it: older ones have no seconds of single engines."""
    told = manifest.built.options.get(SECONDS)
    if not isinstance(told, dict):
        return
    for engine in manifest.engines:
        seconds = told.get(graph_of(manifest.backend.target.layout, engine.name))
        if isinstance(seconds, (int, float)) and not isinstance(seconds, bool):
            yield (
                engine.signature,
                Earlier(
                    seconds=float(seconds),
                    bundle=folder.name,
                    bundle_seconds=manifest.built.seconds,
                ),
            )
