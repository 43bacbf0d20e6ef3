"""Labels of a manifest that its bundle was not built with.

Each of ``ATTACKS`` changes a bundle in place, its digests made right and its build key left.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.hostile.digests import make_right, manifest_of

Json = dict[str, Any]


def relabelled(change: Callable[[Json], None], folder: Path) -> None:
    manifest = manifest_of(folder)
    change(manifest)
    make_right(folder, manifest, keyed=False)


def renamed(manifest: Json) -> None:
    """To a model with the same dimensions."""
    for place, key in (("model", "name"), ("plan", "model")):
        manifest[place][key] = "flux-tiny-turbo"
    manifest["built"]["options"]["model"] = "flux-tiny-turbo"


def quantised(manifest: Json) -> None:
    manifest["precision"] = "int8"


def half(manifest: Json) -> None:
    manifest["precision"] = "bf16"


def other_weights(manifest: Json) -> None:
    manifest["model"]["weights_sha256"] = "0" * 64


def other_config(manifest: Json) -> None:
    manifest["model"]["config"]["num_layers"] = 19


def other_blocks(manifest: Json) -> None:
    manifest["built"]["options"]["blocks"] = "1,1"


def odd_blocks(manifest: Json) -> None:
    manifest["built"]["options"]["blocks"] = ["1", 2]


def calibrated(manifest: Json) -> None:
    manifest["calibration"] = "0" * 64


def fewer_parts(manifest: Json) -> None:
    manifest["pipeline"]["parts"].remove("vae")


def other_target(manifest: Json) -> None:
    manifest["backend"]["target"] = "sm89"


def swapped_stages(manifest: Json) -> None:
    first, second, *_ = manifest["engines"]
    first["signature"], second["signature"] = second["signature"], first["signature"]


CHANGES = (
    renamed, quantised, half, other_weights, other_config, other_blocks, odd_blocks, calibrated,
    fewer_parts, other_target, swapped_stages,
)  # fmt: skip
ATTACKS: dict[str, Callable[[Path], None]] = {
    change.__name__: partial(relabelled, change) for change in CHANGES
}
