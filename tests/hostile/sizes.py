"""Files and plans that are too large for any model, with a manifest that says so.

Each of ``ATTACKS`` changes a bundle in place. Files are sparse: their gigabytes take no room, and
nobody can want them hashed; so their digests stand for whatever they would be.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.hostile.digests import MANIFEST, make_right, manifest_of, replaced, sealed

Attack = Callable[[Path], None]

BYTES = 60 * 2**30
STEPS = 40_000


def sparse(ending: str, folder: Path) -> None:
    """The first listed file of that ending, or one that no build writes, is 60 GB."""
    manifest = manifest_of(folder)
    name = next(
        (each["path"] for each in manifest["files"] if each["path"].endswith(ending)),
        f"transformer/more{ending}",
    )
    replaced(folder / name, b"")
    with (folder / name).open("wb") as file:
        file.truncate(BYTES)
    files = {each["path"]: each for each in manifest["files"]}
    files[name] = {"path": name, "bytes": BYTES, "sha256": "0" * 64}
    manifest["files"] = [files[path] for path in sorted(files)]
    replaced(folder / MANIFEST, sealed(manifest))


def many_steps(folder: Path) -> None:
    """A plan of 40,000 steps."""
    manifest = manifest_of(folder)
    plan = manifest["plan"]
    stage = plan["stages"][-1]
    plan["nfe"] += STEPS - stage["steps"]
    start = stage["sigma_start"]
    stage["steps"], stage["actions"] = STEPS, ["full"] * STEPS
    stage["sigmas"] = [start - start * index / STEPS for index in range(STEPS)] + [0.0]
    make_right(folder, manifest)


SPARSE: dict[str, Attack] = {
    f"60 GB of {ending}": partial(sparse, ending)
    for ending in (
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/config.json",
        "tokenizer/tokenizer.json",
        ".onnx",
        ".pt2",
        ".plan",
        ".bin",
        ".any",
    )
}
ATTACKS: dict[str, Attack] = {**SPARSE, "40,000 steps": many_steps}
