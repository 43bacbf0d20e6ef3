"""Files that a build writes beside its engines, for people and for an opener, in other shapes.

Each of ``ATTACKS`` changes a bundle in place, with right digests; files are replaced. ``SHAPES``
has what may stand in such a file, whichever it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.hostile.configs import NO_OBJECTS
from tests.hostile.digests import make_right, manifest_of, replaced

Attack = Callable[[Path], None]

SHAPES: dict[str, bytes] = {
    **NO_OBJECTS,
    "texts": b'{"torch": 7, "attention": "x", "features": "avx2", "a": {"attention": []}}',
    "nothing where an object should be": b'{"a": null}',
    "lists": b'{"a": [[[]]], "features": [null], "milliseconds": 1}',
    "a number of many digits": b'{"a": ' + b"9" * 1000 + b"}",
    "a key twice": b'{"a": 1, "a": 2}',
}


def beside_engine(name: str, content: bytes, folder: Path) -> None:
    """A file of that name among those of the first engine."""
    manifest = manifest_of(folder)
    engine = manifest["engines"][0]
    engine["files"] = [*engine["files"], name]
    replaced(folder / name, content)
    make_right(folder, manifest)


PRODUCTS = "stage1.full.products.json"
READ = (PRODUCTS, "blocks/attention.json")
"""What ``fresco-trt inspect`` reads."""

ATTACKS: dict[str, Attack] = {
    f"{name}: {shape}": partial(beside_engine, name, content)
    for name in READ
    for shape, content in SHAPES.items()
}
