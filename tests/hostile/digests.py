"""Right digests for wrong content: what anyone who knows the format can do to a bundle.

Written from the format's description, so that nothing of the package has to accept the content.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
UNLISTED = (MANIFEST, "manifest.sig")


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest as it stands, unchecked."""
    found: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    return found


def make_right(folder: Path, manifest: dict[str, Any] | None = None, *, keyed: bool = True) -> None:
    """Write ``manifest`` (None: the one that is there) with the files that are there now, their
    sizes and digests, the pipeline's and its own, and the build key of what it says.

    Files are replaced, never written into: a copy by hard links leaves its original alone.
    """
    told = manifest_of(folder) if manifest is None else manifest
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    told["files"] = [_record(folder, name) for name in names if name not in UNLISTED]
    pipeline = told["pipeline"]
    if not Path(pipeline["folder"]).is_absolute():
        pipeline["digest"] = _digest_of(pipeline["folder"], pipeline["parts"], told["files"])
    if keyed:
        told["key"] = _sha256(_canonical(_identity(told)))
    replaced(folder / MANIFEST, sealed(told))


def sealed(manifest: dict[str, Any]) -> bytes:
    """The bytes of a manifest with its own digest made right."""
    bare = {key: value for key, value in manifest.items() if key != "digest"}
    told = {**bare, "digest": _sha256(_canonical(bare))}
    return json.dumps(told, sort_keys=True, indent=1).encode()


def _identity(told: dict[str, Any]) -> dict[str, Any]:
    """What the build key is taken over."""
    backend, options = told["backend"], told["built"]["options"]
    target = dict(pair.split("=") for pair in backend["target"].split(",") if "=" in pair)
    machine = {"kind of machine": options["machine"]} if "machine" in options else {}
    return {
        "model": told["model"]["name"],
        "weights": told["model"]["weights_sha256"],
        "plan": told["plan"],
        "SVD basis": options.get("svd_basis"),
        "text length": told["text_tokens"],
        "precision": told["precision"],
        "quantisation": options.get("quantisation"),
        "backend": [backend["name"], backend["library"], backend["library_version"]],
        "targets": [each for each in backend["target"].split(",") if each and "=" not in each],
        "layout": target.get("layout", "static"),
        "weight streaming": target.get("stream_weights") == "true",
        "prompt encoders or decoder": told["pipeline"]["digest"],
        "package versions": options.get("packages"),
        **machine,
    }


def replaced(path: Path, content: bytes) -> None:
    """A new file in the place of ``path``, which may be a hard link to another bundle's."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _digest_of(folder: str, parts: list[str], files: list[dict[str, Any]]) -> str:
    inside = [
        [each["path"].removeprefix(f"{folder}/"), each["bytes"], each["sha256"]]
        for each in files
        if each["path"].startswith(f"{folder}/")
    ]
    chosen = [row for row in inside if not parts or row[0].split("/")[0] in parts]
    return _sha256(_canonical(chosen))


def _record(folder: Path, name: str) -> dict[str, Any]:
    data = (folder / name).read_bytes()
    return {"path": name, "bytes": len(data), "sha256": _sha256(data)}


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
