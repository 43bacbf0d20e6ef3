"""That what is loaded from a bundle is what was checked.

Between the check of a bundle and the libraries that load its files by name. An ordinary rebuild may
put another bundle there meanwhile, which would be drawn with under the old one's manifest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fresco_trt.bundle.manifest import Manifest
from fresco_trt.errors import BundleChanged, BundleError, error_context
from fresco_trt.files.canonical_json import MANIFEST_NAME, quoted
from fresco_trt.files.identity import Seen


@contextmanager
def one_bundle(folder: Path) -> Iterator[None]:
    """The scope of a check. Raises BundleChanged in place of an error that comes of a replacement
    in the middle, and is no damage.
    """
    try:
        before = Seen.of(folder, (".", MANIFEST_NAME))
    except OSError:  # as the check will say
        yield
        return
    try:
        yield
    except BundleError as error:
        _require_same(folder, before, error)
        raise


@contextmanager
def unchanged(folder: Path, seen: Seen) -> Iterator[None]:
    """The scope of loading. Raises BundleChanged at its end, in place of any error in it."""
    try:
        yield
    except Exception as error:
        check_unchanged(folder, seen, error)
        raise
    check_unchanged(folder, seen)


def check_unchanged(folder: Path, seen: Seen, cause: Exception | None = None) -> None:
    """Raise BundleChanged if the bundle is not the one that was seen; ``cause`` may come of it."""
    with error_context(f"bundle {quoted(str(folder))}"):
        _require_same(folder, seen, cause)


def loaded_later(manifest: Manifest) -> Iterator[str]:
    """Everything that is loaded by name after the check, and the folders that it is in."""
    names = [MANIFEST_NAME, *(file.path for file in manifest.files)]
    yield from sorted({str(parent) for name in names for parent in PurePosixPath(name).parents})
    yield from names


def _require_same(folder: Path, seen: Seen, cause: Exception | None) -> None:
    name = seen.changed(folder)
    if name is None:
        return
    raise BundleChanged(
        f"{'its folder' if name == '.' else quoted(name)} was replaced or written to meanwhile",
        expected="the same files from the check of their bytes until they are loaded",
        fix="open it again",
    ) from cause
